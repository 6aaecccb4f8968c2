import pytest
import torch

from udmlss import pair_with_neighbors


def nearest_by_hand(features):
    """Return for each row the index of the other row with the largest cosine."""
    rows = (features / features.norm(dim=1, keepdim=True)).tolist()
    found = []
    for i, row in enumerate(rows):
        others = [(sum(a * b for a, b in zip(row, other, strict=True)), j) for j, other in enumerate(rows) if j != i]
        found.append(max(others)[1])
    return found


@pytest.mark.parametrize(("n", "f"), [(2, 1), (30, 3), (30, 100)])
def test_with_a_share_of_one_each_image_has_its_nearest_neighbor(n, f):
    features = torch.randn(n, f, dtype=torch.float64)
    if f == 1:
        features = features.abs()
    assert pair_with_neighbors(features, share=1).tolist() == nearest_by_hand(features)


def test_with_a_share_of_zero_each_image_has_itself():
    assert pair_with_neighbors(torch.randn(30, 3), share=0).tolist() == list(range(30))


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_as_many_images_have_their_neighbor_as_the_share_says(share):
    features = torch.randn(2000, 3)
    own, nearest = torch.arange(2000), pair_with_neighbors(features, share=1)
    found = pair_with_neighbors(features, share=share)
    assert (found == torch.where(found == own, own, nearest)).all()
    assert (found != own).float().mean().item() == pytest.approx(share, abs=0.05)


def test_half_have_their_neighbor_by_default():
    features = torch.randn(50, 3)
    assert torch.equal(pair_with_neighbors(features), pair_with_neighbors(features, share=0.5))


def test_the_draw_is_the_seed_s_and_leaves_the_global_one_alone():
    features = torch.randn(50, 3)
    before = torch.get_rng_state()
    one, again, other = (pair_with_neighbors(features, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_duplicate_is_a_neighbor_and_zeros_do_no_harm():
    assert pair_with_neighbors(torch.eye(3).repeat(2, 1), share=1).tolist() == [3, 4, 5, 0, 1, 2]
    assert (pair_with_neighbors(torch.zeros(4, 3), share=1) != torch.arange(4)).all()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=rf"`share` must lie in 0\.\.1, got {share}\. Choose"):
        pair_with_neighbors(torch.eye(3), share=share)


def test_features_without_neighbors_or_values_are_refused():
    with pytest.raises(ValueError, match="number of items to find, got 0"):
        pair_with_neighbors(torch.ones(1, 3))
    with pytest.raises(ValueError, match="`features` must be finite, got 1 of 3 rows"):
        pair_with_neighbors(torch.tensor([[1.0], [torch.nan], [0.0]]))
