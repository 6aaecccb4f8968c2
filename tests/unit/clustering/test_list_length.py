import torch
from sklearn.metrics import adjusted_rand_score

from udmlss.clustering.communities import Communities
from udmlss.clustering.list_length import LENGTHS, choose_list_length


def groups_of(n_groups, size, spread):
    groups = torch.arange(n_groups).repeat_interleave(size)
    centers = torch.nn.functional.normalize(torch.randn(n_groups, 64))
    return centers[groups] + spread * torch.randn(len(groups), 64), groups


def test_the_length_grows_with_the_size_of_the_groups():
    lengths = [choose_list_length(groups_of(16, size, spread=0.09)[0]) for size in (5, 10, 20)]
    assert lengths == sorted(set(lengths))


def test_the_length_does_not_depend_on_scale_or_type():
    rows, _ = groups_of(12, 8, spread=0.1)
    changed = (rows, 1e25 * rows, 1e-25 * rows, rows.double(), rows.bfloat16())
    assert len({choose_list_length(each) for each in changed}) == 1


def test_few_or_equal_rows_have_a_length():
    assert choose_list_length(torch.randn(3, 2)) == LENGTHS[0]
    duplicates = torch.eye(4).repeat_interleave(30, dim=0)
    found = Communities(choose_list_length(duplicates)).fit_predict(duplicates)
    assert adjusted_rand_score(found, torch.arange(120) // 30) == 1


def test_of_many_rows_those_near_to_one_are_used(monkeypatch):
    rows, _ = groups_of(40, 20, spread=0.1)
    monkeypatch.setattr("udmlss.clustering.list_length.LARGEST_SAMPLE", 200)
    chosen = choose_list_length(rows)
    assert chosen in LENGTHS
    assert adjusted_rand_score(torch.arange(800) // 20, Communities(chosen).fit_predict(rows)) > 0.9


def test_copies_of_one_row_do_not_fill_the_sample(monkeypatch):
    rows, groups = groups_of(40, 20, spread=0.1)
    with_copies = torch.cat([rows, rows[:1].expand(3000, -1)])
    communities = Communities()
    communities.fit_predict(with_copies)
    monkeypatch.setattr("udmlss.clustering.list_length.LARGEST_SAMPLE", 200)
    for chosen in (communities.n_neighbors_, choose_list_length(with_copies)):
        assert adjusted_rand_score(groups, Communities(chosen).fit_predict(rows)) > 0.9
    assert choose_list_length(torch.eye(2).repeat_interleave(200, dim=0)) == LENGTHS[0]
