import torch

from udmlss.neighbors import copies


def test_rows_beyond_the_limit_are_left_out_and_refer_to_their_first_copy():
    rows = torch.tensor([[0.0, 1], [2, 3], [0, 1], [-0.0, 1], [2, 3], [0, 1], [1, 0]])
    retained, positions = copies.limit_copies(rows, 2)
    assert retained.tolist() == [0, 1, 2, 4, 6]
    assert positions.tolist() == [0, 1, 2, 0, 3, 0, 4]
    assert torch.equal(rows[retained][positions], rows)


def test_different_rows_with_the_same_key_are_retained(monkeypatch):
    monkeypatch.setattr(copies, "_keys", lambda rows: torch.zeros(len(rows), dtype=torch.int64))
    rows = torch.tensor([[1.0], [2], [1], [3]])
    retained, positions = copies.limit_copies(rows, 1)
    assert retained.tolist() == [0, 1, 3]
    assert positions.tolist() == [0, 1, 0, 2]


def test_there_are_no_positions_if_no_row_is_removed():
    assert copies.limit_copies(torch.eye(2).repeat(3, 1), 3) is None
