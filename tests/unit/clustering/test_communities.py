import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from udmlss import ClusterPseudoLabeler
from udmlss.clustering import Communities, JaccardDBSCAN
from udmlss.clustering.communities import coarse_communities
from udmlss.clustering.list_length import choose_list_length


def groups_of(sizes, spread=0.1):
    """Return rows around directions that are far apart, and their groups."""
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.eye(len(sizes), 32)[groups] + spread * torch.randn(len(groups), 32), groups


def test_groups_of_very_different_sizes_are_found_without_their_number():
    rows, groups = groups_of([40, 30, 25, 20, 15])
    assert adjusted_rand_score(groups, Communities(n_neighbors=12).fit_predict(rows)) == 1


def test_of_many_rows_the_length_is_chosen_on_some_before_all_are_searched(monkeypatch):
    rows, groups = groups_of([20] * 12, spread=0.08)
    for module in ("list_length", "communities"):
        monkeypatch.setattr(f"udmlss.clustering.{module}.LARGEST_SAMPLE", 100)
    communities = Communities()
    assert adjusted_rand_score(groups, communities.fit_predict(rows.requires_grad_())) > 0.95
    assert communities.n_neighbors_ == choose_list_length(rows)


def test_small_communities_are_unassigned_and_the_labeler_renumbers_the_others():
    rows, groups = groups_of([8, 4, 8])
    communities = Communities(n_neighbors=3, min_cluster_size=5)
    found = communities.fit_predict(rows.numpy())
    assert set(found[groups == 1].tolist()) == {-1}
    assert (found[groups != 1] >= 0).all()
    assert ClusterPseudoLabeler(communities).label(rows).sizes.tolist() == [8, 8]


def test_scale_and_seed_do_not_change_groups_that_are_far_apart():
    rows, groups = groups_of([20, 20, 20], spread=0.05)
    for scale, seed in ((1, 0), (1e-6, 1), (1e6, 2)):
        assert adjusted_rand_score(groups, Communities(8, seed=seed).fit_predict(scale * rows)) == 1


def test_the_labeler_accepts_communities_and_matches_their_ids():
    rows, _ = groups_of([20, 20, 20], spread=0.05)
    labeler = ClusterPseudoLabeler(Communities(n_neighbors=8))
    first, second = labeler.label(rows), labeler.label(rows + 0.01 * torch.randn(rows.shape))
    assert torch.equal(first.labels, second.labels)
    assert second.agreement == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(30, 4), "Embeddings must differ"),
        (torch.randn(5, 4), "`n_neighbors`, 8, must be below the number of images, got 5"),
        (torch.full((30, 4), torch.nan), "`X` must be finite"),
    ],
)
def test_unusable_rows_are_an_error(rows, message):
    with pytest.raises(ValueError, match=message):
        Communities(n_neighbors=8).fit_predict(np.asarray(rows))


def test_rows_that_differ_by_rounding_alone_are_an_error():
    rows = torch.nn.functional.normalize(torch.randn(1, 16)).repeat(200, 1)
    for collapsed in (rows + 6e-8 * torch.randn(200, 16), rows * torch.rand(200, 1)):
        for labeler in (ClusterPseudoLabeler(), ClusterPseudoLabeler(Communities(6))):
            with pytest.raises(ValueError, match="200 rows with the same direction up to rounding"):
                labeler.label(collapsed)
    assert len(Communities(6).fit_predict(rows + 1e-5 * torch.randn(200, 16))) == 200


@pytest.mark.parametrize("clusterer", [Communities(n_neighbors=3), JaccardDBSCAN(k1=6, k2=2)])
def test_arrays_that_are_read_only_or_reversed_are_clustered_without_a_warning(clusterer, monkeypatch):
    rows = (torch.eye(3).repeat_interleave(6, dim=0) + 0.1 * torch.rand(18, 3)).numpy()
    expected = clusterer.fit_predict(rows).tolist()
    rows.setflags(write=False)
    assert clusterer.fit_predict(rows).tolist() == expected
    assert clusterer.fit_predict(rows[::-1].astype(np.float64)[::-1]).tolist() == expected
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects integers as well
    with pytest.raises(TypeError, match="`X` must be floating-point, got int64"):
        clusterer.fit_predict(rows.astype(np.int64))


@pytest.mark.parametrize("n_images", [6, 12, 24])
def test_without_settings_groups_are_found_whatever_their_size(n_images):
    rows, groups = groups_of([n_images] * 12, spread=0.08)
    communities = Communities()
    found = communities.fit_predict(rows)
    assert adjusted_rand_score(groups, found) > 0.95
    assert n_images / 2 <= communities.n_neighbors_ <= n_images
    assert communities.n_neighbors_ == choose_list_length(rows)


def test_the_length_of_the_lists_follows_from_the_images_of_one_thing():
    communities = Communities(images_per_cluster=12)
    communities.fit_predict(groups_of([12] * 6)[0])
    assert communities.n_neighbors_ == 6
    many = Communities(images_per_cluster=200)
    many.fit_predict(torch.randn(400, 8))
    assert many.n_neighbors_ == 64


def test_the_labeler_without_settings_retains_the_length_of_the_first_round():
    rows, groups = groups_of([12] * 12, spread=0.08)
    labeler, resumed = ClusterPseudoLabeler(), ClusterPseudoLabeler()
    first = labeler.label(rows)
    assert adjusted_rand_score(groups, first.labels) > 0.95
    length = labeler.state_dict()["n_neighbors"]
    resumed.load_state_dict(labeler.state_dict())
    other = groups_of([36] * 4, spread=0.08)[0]
    fresh = Communities()
    fresh.fit_predict(other)
    assert fresh.n_neighbors_ != length
    assert torch.equal(resumed.label(other).labels, labeler.label(other).labels)
    assert labeler.state_dict()["n_neighbors"] == resumed.state_dict()["n_neighbors"] == length


def test_settings_that_contradict_each_other_or_the_images_are_an_error():
    with pytest.raises(ValueError, match="At most one of `n_neighbors` and `images_per_cluster` must be given, got bo"):
        Communities(3, images_per_cluster=4)
    with pytest.raises(ValueError, match="`images_per_cluster=4` must be at most half of the number of images, got 7"):
        Communities(images_per_cluster=4).fit_predict(torch.randn(7, 3))
    with pytest.raises(ValueError, match="The number of neighbors, 2, must be below the number of images, got 2"):
        Communities().fit_predict(torch.randn(2, 3))


def test_coarse_communities_are_families_of_clusters():
    directions, families = torch.eye(4, 24).repeat_interleave(5, dim=0), torch.arange(4).repeat_interleave(5)
    directions[torch.arange(20), 4 + torch.arange(20)] = 0.5
    labels = torch.arange(20).repeat_interleave(12)
    communities = Communities(n_neighbors=16)
    communities.fit_predict(directions[labels] + 0.15 * torch.randn(240, 24))
    labels[::12] = -1
    found = coarse_communities(communities.graph_, labels)
    assert torch.equal(found < 0, labels < 0)
    assert adjusted_rand_score(families[labels[labels >= 0]], found[labels >= 0]) == 1
