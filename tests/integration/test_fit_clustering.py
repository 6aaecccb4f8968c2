"""What `fit` clusters, where the embeddings are stored, and errors of a clustering in a later round."""

import sys
import weakref
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from short_training import IMAGES, Augmented, criterion, figures, make_model, short_fit, weights
from torch import nn

from udmlss import ClusterPseudoLabeler, EmbeddingModel, PseudoLabels, embed, parameter_groups


class Recording(ClusterPseudoLabeler):
    """A labeler that stores a copy of the rows that it clusters."""

    def label(self, embeddings):
        self.seen = [*getattr(self, "seen", []), embeddings.clone()]
        return super().label(embeddings)


@pytest.mark.parametrize(
    ("cluster_on", "widths"),
    [(None, [256, 16, 16]), ("embeddings", [16, 16, 16]), ("features", [256, 256, 256])],
)
def test_each_round_clusters_features_or_embeddings_as_set(cluster_on, widths):
    model, labeler = make_model(), Recording(16)
    first = embed(model, IMAGES) if widths[0] == 16 else embed(model, IMAGES, output="features")
    result = short_fit(model, labeler=labeler, cluster_on=cluster_on, max_steps=7)
    assert [rows.shape[1] for rows in labeler.seen] == widths
    assert torch.allclose(labeler.seen[0], nn.functional.normalize(first), atol=1e-5)
    assert all(torch.allclose(rows.norm(dim=1), torch.ones(len(IMAGES))) for rows in labeler.seen)
    assert result.pseudo_labels.centers.shape == (16, 16)


def test_embeddings_of_a_principal_component_analysis_are_clustered_from_the_first_round():
    model, labeler = EmbeddingModel.from_trunk(make_model().trunk, IMAGES, 16, progress=False), Recording(16)
    first = embed(model, IMAGES)
    short_fit(model, labeler=labeler, max_steps=4)
    assert torch.allclose(labeler.seen[0], first, atol=1e-5)


def test_features_are_scored_if_all_rounds_cluster_them():
    settings = {"cluster_images": IMAGES, "label_free": True, "max_steps": 1}
    ranks = [
        short_fit(make_model(), Augmented(), cluster_on=cluster_on, **settings).start.effective_rank
        for cluster_on in ("features", None)
    ]
    assert ranks[0] > 16 > ranks[1]


@pytest.mark.parametrize("cluster_on", ["features", "embeddings"])
def test_embeddings_in_a_folder_give_the_same_run_and_leave_no_file(cluster_on, tmp_path):
    runs = []
    for folder in (None, tmp_path):
        model, labeler = make_model(), Recording(16)
        result = short_fit(model, labeler=labeler, cluster_on=cluster_on, embeddings_folder=folder)
        runs.append(([weights(model), *labeler.seen], figures(result)))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=0, atol=0)
    assert runs[1][1] == runs[0][1]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the file mappings that Linux reports")
@pytest.mark.parametrize("cluster_on", ["features", "embeddings"])
def test_clustered_rows_are_in_an_unnamed_file_in_the_folder(cluster_on, tmp_path):
    seen = []

    class Inspecting(ClusterPseudoLabeler):
        def label(self, embeddings):
            seen.append(folder_of(embeddings) == str(tmp_path) and not list(tmp_path.iterdir()))
            return super().label(embeddings)

    short_fit(make_model(), labeler=Inspecting(16), cluster_on=cluster_on, embeddings_folder=tmp_path)
    assert seen == [True, True]


def folder_of(tensor):
    """Return the folder of the file from which a tensor is mapped, or None."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line[line.find("/") :].rpartition("/")[0]
    return None


@pytest.mark.parametrize("cluster_on", ["features", "embeddings"])
def test_no_embeddings_of_all_images_are_in_memory_during_steps(cluster_on):
    clustered, in_memory = [], []

    class Watching(ClusterPseudoLabeler):
        def label(self, embeddings):
            clustered.append(weakref.ref(embeddings))
            return super().label(embeddings)

    class Loss(losses.ContrastiveLoss):
        def forward(self, *args, **kwargs):
            in_memory.append([rows() is not None for rows in clustered])
            return super().forward(*args, **kwargs)

    short_fit(make_model(), labeler=Watching(16), criterion=criterion(Loss()), cluster_on=cluster_on, max_steps=4)
    check, *in_memory = in_memory  # the first batch is that of the check before training
    assert check == []
    assert in_memory == [[False]] * 3 + [[False, False]]


def test_collapsed_embeddings_in_a_later_round_raise_an_error():
    model, loss = make_model(), criterion()

    class Collapsing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                model.embedder.weight.zero_()
                model.embedder.bias.fill_(1)

    optimizer = Collapsing(parameter_groups(model, loss))
    with pytest.raises(ValueError, match=r"Embeddings must differ, got 240 equal rows: the model has") as caught:
        short_fit(model, criterion=loss, optimizer=optimizer)
    assert caught.value.__notes__ == ["`fit` had taken 3 steps in 1 complete rounds."]


def test_too_few_clusters_in_a_later_round_raise_an_error_with_their_sizes():
    class Fewer:
        def __init__(self):
            self.rounds = 0

        def label(self, embeddings):
            self.rounds += 1
            return PseudoLabels.from_labels(torch.arange(len(embeddings)) % (10 if self.rounds == 1 else 4))

    with pytest.raises(ValueError, match=r"`clusters_per_batch=8` needs at least 8 clusters.*got 4 \(the largest"):
        short_fit(make_model(), labeler=Fewer())
