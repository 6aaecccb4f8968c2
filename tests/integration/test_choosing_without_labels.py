"""`fit` that keeps its best weights, stops by itself, and the choice of k: none of them sees a label."""

import jaxtyping
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import Dataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, UDMLSSLoss, choose_n_clusters, embed, fit
from udmlss.types import FitResult, LabelFreeScores

PLAIN = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(10, dim=0)
PLAIN = PLAIN + 0.5 * torch.randn(PLAIN.shape, generator=torch.Generator().manual_seed(1))


class Augmented(Dataset):
    """Images with fresh noise each time they are taken; one that was taken is like no other."""

    def __len__(self):
        return len(PLAIN)

    def __getitem__(self, index):
        return PLAIN[index] + 0.5 * torch.randn(PLAIN[index].shape)


def make_model():
    torch.manual_seed(0)
    return EmbeddingModel(nn.Flatten(), nn.Linear(108, 16))


class Noise(nn.Module):
    """A loss whose gradient only ever spoils the model."""

    def forward(self, embeddings, _labels):
        return (embeddings * torch.randn_like(embeddings)).sum()


class LateNoise(Noise):
    """Learns for two rounds before it spoils."""

    def __init__(self):
        super().__init__()
        self.learns = losses.MultiSimilarityLoss(2, 40, 0.5)
        self.steps = 0

    def forward(self, embeddings, labels):
        self.steps += 1
        return self.learns(embeddings, labels) if self.steps <= 6 else 100 * super().forward(embeddings, labels)


def run(model, loss=None, **changes):
    criterion = UDMLSSLoss(loss or losses.MultiSimilarityLoss(2, 40, 0.5))
    settings = {"clusters_per_batch": 4, "max_steps": 12, "relabel_every": 3, "cluster_images": PLAIN}
    parts = {"labeler": ClusterPseudoLabeler(12), "criterion": criterion, "progress": False}
    rate = changes.pop("lr", 1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return fit(model, Augmented(), optimizer=optimizer, **(settings | parts | changes))


def test_every_round_and_the_start_are_scored():
    result = run(make_model())
    scores = [result.start, *(report.label_free for report in result.history)]
    assert len(scores) == 5
    assert all(0 < one.self_retrieval <= 1 and 0 < one.shared_neighbors <= 1 for one in scores)
    assert all(1 < one.effective_rank <= 16 for one in scores)


def test_the_same_weights_score_the_same_in_every_round():
    result = run(make_model(), lr=0.0)
    assert {report.label_free for report in result.history} == {result.start}


def test_the_weights_kept_are_those_of_the_round_with_the_highest_score():
    model, seen = make_model(), {}

    def remember(report):
        seen[report.step] = embed(model, PLAIN)

    seen[0] = embed(model, PLAIN)
    result = run(model, LateNoise(), lr=0.1, keep="best", callbacks=[remember])
    scores = {0: result.start.score} | {report.step: report.label_free.score for report in result.history}
    best = max(scores, key=scores.get)
    assert result.kept_step == best
    assert 0 < best < 12
    assert result.label_free.score == scores[best]
    assert torch.equal(embed(model, PLAIN), seen[best])


def test_the_last_weights_are_kept_unless_asked_otherwise():
    model, last = make_model(), []
    result = run(model, Noise(), lr=0.3, callbacks=[lambda _report: last.append(embed(model, PLAIN))])
    assert result.kept_step == 12
    assert torch.equal(embed(model, PLAIN), last[-1])


def test_training_that_only_spoils_ends_when_patience_does():
    result = run(make_model(), Noise(), lr=1.0, patience=2, keep="best")
    assert result.ended == "patience"
    assert result.history[-1].step == result.kept_step + 2 * 3


def test_the_best_weights_come_back_also_when_training_breaks_off():
    model = make_model()
    before = embed(model, PLAIN)

    class Failing(Noise):
        steps = 0

        def forward(self, embeddings, labels):
            self.steps += 1
            if self.steps == 5:
                raise RuntimeError("out of memory")
            return super().forward(embeddings, labels)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, Failing(), lr=3.0, keep="best")
    assert torch.equal(embed(model, PLAIN), before)


def test_an_interrupted_round_has_no_score_and_the_best_weights_come_back():
    class Interrupted(Noise):
        steps = 0

        def forward(self, embeddings, labels):
            self.steps += 1
            if self.steps == 5:
                raise KeyboardInterrupt
            return super().forward(embeddings, labels)

    result = run(make_model(), Interrupted(), lr=3.0, keep="best")
    assert result.ended == "interrupt"
    assert result.history[-1].label_free is None
    assert result.kept_step == 0
    assert result.label_free == result.start


def test_keeping_changes_nothing_that_is_learnt():
    models = make_model(), make_model()
    histories = [run(models[0]).history, run(models[1], keep="best", patience=9).history]
    losses_of = [[report.loss for report in history] for history in histories]
    assert losses_of[0] == losses_of[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "first"}, r"`keep` must be one of 'last', 'best', got 'first'"),
        ({"keep": "best", "max_steps": 3}, r'`keep="best"` needs 2 or more rounds .*, got one round of 3 steps\.'),
        ({"patience": 0}, r"`patience` must be at least 1, got 0"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types in the signature refuse one, too
    with pytest.raises(ValueError, match=message):
        run(make_model(), **changes)


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 1}])
def test_choosing_without_augmentations_is_refused(changes):
    criterion = UDMLSSLoss(losses.MultiSimilarityLoss())
    with pytest.raises(ValueError, match=r"must be augmented at random, got equal views of the first 8 images"):
        fit(make_model(), PLAIN, labeler=ClusterPseudoLabeler(16), criterion=criterion, progress=False, **changes)


def finished(score):
    scores = None if score is None else LabelFreeScores(0.5, score, 5.0, score)
    return FitResult(history=(), pseudo_labels=None, ended="interrupt", start=scores, kept_step=0)


def test_the_number_of_clusters_with_the_highest_score_is_chosen():
    results = {4: finished(0.5), 8: finished(0.7), 16: finished(0.7), 32: finished(0.1)}
    choice = choose_n_clusters(results.__getitem__, list(results))
    assert choice.n_clusters == 8
    assert choice.results == results


def test_real_trainings_can_be_chosen_from():
    choice = choose_n_clusters(lambda k: run(make_model(), labeler=ClusterPseudoLabeler(k)), [6, 12])
    assert choice.n_clusters in {6, 12}
    assert [result.pseudo_labels.n_clusters for result in choice.results.values()] == [6, 12]


@pytest.mark.parametrize("candidates", [[], [8], [8, 8]])
def test_fewer_than_two_different_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match=r"`candidates` must be 2 or more different numbers; found"):
        choose_n_clusters(finished, candidates)


def test_a_training_that_was_never_measured_is_refused():
    with pytest.raises(ValueError, match=r"first label-free score, got none with 4 clusters, ended by interrupt"):
        choose_n_clusters(lambda _k: finished(None), [4, 8])
