"""`BestWeights`, `EarlyStopping` and label-free scores in `fit`, none of which sees a label."""

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.utils.data import Dataset

from udmlss import BestWeights, ClusterPseudoLabeler, EarlyStopping, EmbeddingModel, WeightAverage, embed, fit

PLAIN = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(10, dim=0)
PLAIN = PLAIN + 0.5 * torch.randn(PLAIN.shape, generator=torch.Generator().manual_seed(1))


class Augmented(Dataset):
    """The images with new noise each time that they are loaded."""

    def __len__(self):
        return len(PLAIN)

    def __getitem__(self, index):
        return PLAIN[index] + 0.5 * torch.randn(PLAIN[index].shape)


def make_model():
    torch.manual_seed(0)
    return EmbeddingModel(nn.Flatten(), nn.Linear(108, 16))


class Noise(nn.Module):
    """A loss with random gradients, which raises an error in one step if there is one."""

    def __init__(self, n_useful_steps=0, error=None):
        super().__init__()
        self.useful = losses.MultiSimilarityLoss(2, 40, 0.5)
        self.n_useful_steps, self.error = n_useful_steps, error
        self.steps = 0

    def forward(self, embeddings, labels):
        self.steps += 1
        if self.error is not None and self.steps == 5:
            raise self.error
        if self.steps <= self.n_useful_steps:
            return self.useful(embeddings, labels)
        return 100 * (embeddings * torch.randn_like(embeddings)).sum()


def run(model, loss=None, lr=1e-3, **changes):
    settings = {"clusters_per_batch": 4, "views": 1, "max_steps": 12, "relabel_every": 3, "cluster_images": PLAIN}
    settings["average_weights"] = False
    parts = {"labeler": ClusterPseudoLabeler(12), "criterion": loss or losses.MultiSimilarityLoss(2, 40, 0.5)}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return fit(model, Augmented(), optimizer=optimizer, progress=False, **(settings | parts | changes))


def test_start_and_every_round_are_scored():
    result = run(make_model(), label_free=True)
    scores = [result.start, *(report.label_free for report in result.history)]
    assert len(scores) == 5
    assert all(0 < one.self_retrieval <= 1 and 0 < one.shared_neighbors <= 1 for one in scores)
    assert all(1 < one.effective_rank <= 16 for one in scores)


def test_equal_weights_have_equal_scores_in_every_round():
    result = run(make_model(), lr=0.0, label_free=True)
    assert {report.label_free for report in result.history} == {result.start}


def test_scoring_does_not_change_the_training():
    models = make_model(), make_model()
    histories = [run(models[0]).history, run(models[1], callbacks=[EarlyStopping(patience=9), BestWeights()]).history]
    assert [report.loss for report in histories[0]] == [report.loss for report in histories[1]]


def test_best_weights_are_those_of_the_round_with_the_highest_score():
    model, seen = make_model(), {}
    seen[0] = embed(model, PLAIN)

    def record(report):
        seen[report.step] = embed(model, PLAIN)

    result = run(model, Noise(n_useful_steps=6), lr=0.1, callbacks=[BestWeights(), record])
    scores = {0: result.start.score} | {report.step: report.label_free.score for report in result.history}
    best = max(scores, key=scores.get)
    assert 0 < best < 12
    assert result.weights_step == best
    assert result.label_free.score == scores[best]
    assert torch.equal(embed(model, PLAIN), seen[best])


@pytest.mark.parametrize("average_first", [True, False])
def test_best_weights_of_a_weight_average_do_not_depend_on_the_order(average_first):
    model, average, best, seen = make_model(), WeightAverage(0.5), BestWeights(), [embed(make_model(), PLAIN)]

    def record(_report):
        seen.append(embed(average.model, PLAIN))

    callbacks = [average, best] if average_first else [best, average]
    result = run(model, Noise(n_useful_steps=6), lr=0.1, callbacks=[*callbacks, record])
    assert 0 < result.weights_step < 12
    assert torch.equal(embed(model, PLAIN), seen[result.weights_step // 3])


def test_last_weights_remain_without_best_weights():
    model, seen = make_model(), []
    result = run(model, Noise(), lr=0.3, label_free=True, callbacks=lambda _report: seen.append(embed(model, PLAIN)))
    assert result.weights_step == 12
    assert torch.equal(embed(model, PLAIN), seen[-1])


def test_early_stopping_ends_training_after_its_patience():
    result = run(make_model(), Noise(), lr=1.0, callbacks=[EarlyStopping(patience=2), BestWeights()])
    assert result.stop_reason == "callback"
    assert result.history[-1].step == result.weights_step + 2 * 3


def test_early_stopping_ends_training_when_clusters_no_longer_change():
    callbacks = EarlyStopping("agreement", threshold=0.05, patience=2)
    result = run(make_model(), callbacks=callbacks, cluster_on="embeddings", max_steps=300)
    assert result.stop_reason == "callback"
    assert len(result.history) == 3


def test_the_agreement_of_labels_of_a_users_labeler_is_known():
    class Constant:
        def label(self, embeddings):
            return torch.arange(len(embeddings)) % 16

    result = run(make_model(), labeler=Constant(), callbacks=EarlyStopping("agreement", patience=2), max_steps=300)
    assert [report.agreement for report in result.history] == [None, 1, 1]
    assert result.pseudo_labels.agreement == 1


def test_best_weights_are_restored_after_an_error():
    model = make_model()
    before = embed(model, PLAIN)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(model, Noise(error=RuntimeError("out of memory")), lr=3.0, callbacks=BestWeights())
    assert torch.equal(embed(model, PLAIN), before)


def test_best_weights_are_restored_after_an_interrupt_and_the_last_round_has_no_score():
    result = run(make_model(), Noise(error=KeyboardInterrupt()), lr=3.0, callbacks=BestWeights())
    assert result.stop_reason == "interrupt"
    assert result.history[-1].label_free is None
    assert result.weights_step == 0
    assert result.label_free == result.start


def test_best_weights_need_two_rounds():
    with pytest.raises(ValueError, match=r"`BestWeights` needs 2 or more rounds .*, got one round of 3 steps\."):
        run(make_model(), callbacks=BestWeights(), max_steps=3)


@pytest.mark.parametrize("callback", [BestWeights(), EarlyStopping()])
def test_scores_to_choose_by_need_random_augmentations(callback):
    settings = {"labeler": ClusterPseudoLabeler(16), "criterion": losses.MultiSimilarityLoss(), "progress": False}
    with pytest.raises(ValueError, match=r"must be augmented at random, got equal views of the first 8 images"):
        fit(make_model(), PLAIN, callbacks=callback, **settings)
