from dataclasses import replace

import clusterers
import clusterings
import frozen_features
import list_lengths
import numpy as np
import pytest
import torch
from clustering_scores import join_nearest, score, with_singletons, wrong_label_auc
from markdown_tables import markdown_table
from scipy.sparse import csr_array


def made_features(n_classes, per_class, seed=0):
    """Features of classes that lie around their centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(n_classes, 8, generator=generator).repeat_interleave(per_class, dim=0)
    noise = torch.randn(len(centers), 8, generator=generator)
    return centers + 0.2 * noise, torch.arange(n_classes).repeat_interleave(per_class)


def pair_scores(classes, clusters):
    """F1 of pairs and precision of pairs as the mean over clusters, pair by pair."""
    same_class, same_cluster = (
        np.array([[i != j and (x == y >= 0) for j, y in enumerate(of)] for i, x in enumerate(of)])
        for of in (classes, clusters)
    )
    hits = (same_class & same_cluster).sum()
    by_cluster = [
        same_class[np.ix_(clusters == number, clusters == number)].sum() / (size * (size - 1))
        for number, size in enumerate(np.bincount(clusters[clusters >= 0]))
        if size > 1
    ]
    return 2 * hits / (same_class.sum() + same_cluster.sum()), np.mean(by_cluster)


def test_scores_of_pairs_are_those_of_a_loop_over_all_pairs():
    generator = np.random.default_rng(0)
    classes, clusters = generator.integers(0, 4, 40), generator.integers(-1, 7, 40)
    found = score(classes, clusters)
    assert (found.pair_f1, found.precision) == pytest.approx(pair_scores(classes, clusters))
    assert found.unassigned == pytest.approx((clusters == -1).mean())
    perfect = score(classes, classes)
    assert (perfect.ami, perfect.pair_f1, perfect.precision, perfect.unassigned) == pytest.approx((1, 1, 1, 0))


def test_unassigned_items_are_clusters_of_one_item():
    assert with_singletons(np.array([-1, 5, 2, -1, 5])).tolist() == [2, 1, 0, 3, 1]
    assert with_singletons(np.array([-1, -1])).tolist() == [0, 1]


def test_unassigned_items_join_the_cluster_with_the_largest_weight():
    graph = np.zeros((5, 5))
    for i, j, weight in ((0, 1, 1), (2, 0, 0.4), (2, 1, 0.4), (2, 3, 0.7)):
        graph[i, j] = graph[j, i] = weight
    joined = join_nearest(csr_array(graph), np.array([0, 0, -1, 1, -1]))
    assert joined.tolist() == [0, 0, 0, 1, -1]


def test_low_reliability_of_wrong_labels_has_the_area_1():
    classes, clusters = np.array([0, 0, 0, 1, 1, 1, 0]), np.array([3, 3, 3, 3, 5, 5, -1])
    assert wrong_label_auc(classes, clusters, np.array([3, 3, 3, 1, 4, 5, 0])) == 1
    assert wrong_label_auc(classes, classes, np.zeros(7)) is None


def test_subsets_have_the_named_number_of_images_of_each_class():
    features, labels = made_features(3, 24)
    found = {
        case.subset: np.bincount(case.classes).tolist()
        for case in frozen_features.cases({"a": dict.fromkeys(frozen_features.HALVES, (features, labels + 7))})
    }
    assert found == {"all": [24] * 3, "20": [20] * 3, "10": [10] * 3, "5": [5] * 3, "unequal": [3, 22, 24]}


def test_a_large_half_is_represented_by_its_first_classes(monkeypatch):
    monkeypatch.setattr(frozen_features, "_MOST_IMAGES", 50)
    case = frozen_features.cases({"a": dict.fromkeys(frozen_features.HALVES, made_features(5, 12))})[0]
    assert np.bincount(case.classes).tolist() == [12] * 4


def test_rules_choose_among_the_lengths_and_the_first_one_as_the_library():
    features, labels = made_features(4, 24)
    (case, *_) = frozen_features.cases({"a": dict.fromkeys(frozen_features.HALVES, (features, labels))})
    lengths = list_lengths.measure_lengths(case)
    assert lengths.found.lengths[-1] == 24
    chosen = {name: list_lengths.position(rule, lengths) for name, rule in list_lengths.RULES.items()}
    assert lengths.found.lengths[chosen["the library's rule"]] == lengths.chosen
    assert lengths.found.n_found[chosen["the library's rule"]] == 4
    assert list_lengths.position(list_lengths.fixed(12), lengths) == lengths.found.lengths.index(12)


def test_modularity_is_that_of_networks_with_equal_parts_without_edges_between_them():
    graph = csr_array(np.kron(np.eye(4), np.ones((3, 3)) - np.eye(3)))
    parts = np.repeat(np.arange(4), 3)
    assert list_lengths._modularity(graph, parts) == pytest.approx(3 / 4)
    assert list_lengths._modularity(graph, np.zeros(12, dtype=int)) == pytest.approx(0)


def test_tables_list_all_cases(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clusterers, "find_spec", lambda _: None)
    (tmp_path / "cache").mkdir()
    saved = {half: made_features(6, 8, seed) for seed, half in enumerate(frozen_features.HALVES)}
    torch.save(saved, tmp_path / "cache/logos.pt")
    clusterings.main(["--data", "logos", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)])
    text = (tmp_path / "clusterings.md").read_text()
    printed = capsys.readouterr().out
    assert "leave out Leiden" in printed
    assert printed.count(" s\n") == 2 * 2
    assert "| k-means, true k | 6/6, 6/6 |" in text
    assert "Leiden, resolution" not in text
    assert text.count("\n| logos, train, ") == 2
    assert "--data logos\n" in text


def test_features_of_a_folder_are_saved(flowers, tmp_path, monkeypatch):
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/logos").symlink_to(flowers)
    small = frozen_features.preset("glyphs")
    monkeypatch.setattr(frozen_features, "preset", lambda data: replace(small, data=data))
    found = frozen_features.load_features("logos", tmp_path / "sets", tmp_path / "cache")
    assert [len(found[half][1]) for half in frozen_features.HALVES] == [24, 24]
    again = frozen_features.load_features("logos", tmp_path / "nowhere", tmp_path / "cache")
    assert torch.equal(again["test"][0], found["test"][0])


def test_a_table_has_a_line_of_titles_and_one_per_row():
    assert markdown_table(("", "AMI"), [["a", "1"]]) == "|  | AMI |\n| --- | --- |\n| a | 1 |"


def test_rejects_other_datasets(capsys):
    with pytest.raises(SystemExit):
        clusterings.main(["--data", "cars"])
    assert "got cars" in capsys.readouterr().err
