import pytest
import torch
import views


def test_the_recall_of_halves_is_that_of_every_other_image_among_all():
    rows, labels = torch.randn(31, 5), torch.randint(6, (31,))
    similarity = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    right = []
    for number, similar in enumerate(similarity):
        similar[number] = -2
        right.append(float(labels[similar.argmax()] == labels[number]))
    expected = [sum(half) / len(half) for half in (right[::2], right[1::2])]
    assert views.recall_of_halves(rows, labels) == pytest.approx(expected)
    assert 0 < min(expected) < max(expected) < 1
