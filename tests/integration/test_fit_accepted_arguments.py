"""Other forms of the arguments of `fit`: bare losses and clusterers, lists, arrays, NumPy numbers, compiled models."""

from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners
from short_training import IMAGES, Augmented, criterion, make_model, make_pretrained_model, short_fit, weights
from sklearn.cluster import AgglomerativeClustering
from torch import nn

from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    PseudoLabels,
    RotationPretextHead,
    Rounds,
    UDMLSSLoss,
    WeightAverage,
    embed,
    fit,
    parameter_groups,
)
from udmlss.clustering import Communities
from udmlss.losses import SelfSupervisedRanking


def trained_weights(images=IMAGES, **changes):
    model = make_model()
    short_fit(model, images, **changes)
    return weights(model)


def test_bare_loss_is_a_criterion():
    loss = losses.ContrastiveLoss()
    assert torch.equal(trained_weights(criterion=loss), trained_weights(criterion=criterion(loss)))


def test_bare_loss_with_parameters_is_trained_and_follows_the_clusters():
    loss, model = losses.ProxyAnchorLoss(16, 16), make_model()
    before = weights(loss)
    result = short_fit(model, criterion=loss, lr=0.0, trunk_lr=0.0)
    assert not torch.equal(weights(loss), before)
    directions = torch.nn.functional.normalize(loss.proxies.detach())
    centers = result.pseudo_labels.centers
    found = (directions @ torch.nn.functional.normalize(centers - centers.mean(dim=0)).T).argmax(dim=1)
    assert torch.equal(found, torch.arange(16))


CLUSTERER = AgglomerativeClustering(16)
LABELERS = {
    "clusterer of scikit-learn": CLUSTERER,
    "function that returns an array": lambda rows: CLUSTERER.fit_predict(rows.numpy()),
    "function that returns a tensor": lambda rows: torch.from_numpy(CLUSTERER.fit_predict(rows.numpy())),
    "function that returns a list": lambda rows: CLUSTERER.fit_predict(rows.numpy()).tolist(),
    "function that returns PseudoLabels": lambda rows: PseudoLabels.from_labels(CLUSTERER.fit_predict(rows.numpy())),
}


@pytest.mark.parametrize("labeler", LABELERS.values(), ids=LABELERS)
def test_labeler_can_be_a_clusterer_or_a_function(labeler):
    expected = trained_weights(labeler=ClusterPseudoLabeler(clusterer=CLUSTERER))
    assert torch.equal(trained_weights(labeler=labeler), expected)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, PseudoLabels.from_labels])
def test_label_method_can_return_labels_of_any_type(convert):
    class Labeler:
        def label(self, embeddings):
            return convert([number % 10 for number in range(len(embeddings))])

    result = short_fit(make_model(), labeler=Labeler(), max_steps=1)
    assert result.pseudo_labels.sizes.tolist() == [24] * 10


def test_single_callback_needs_no_list():
    reports = []
    short_fit(make_model(), callbacks=reports.append)
    assert len(reports) == 2
    settings = {"cluster_images": IMAGES, "max_steps": 2, "relabel_every": 1}
    assert short_fit(make_model(), Augmented(), callbacks=BestWeights(), **settings).start is not None


def test_numpy_numbers_give_the_same_run_as_python_numbers():
    integers = {"clusters_per_batch": 8, "samples_per_cluster": 4, "views": 2, "max_steps": 3, "relabel_every": 2}
    integers |= {"num_workers": 0, "seed": 5, "accumulate_grad_batches": 2}
    numbers = {"lr": 0.5, "trunk_lr": 0.25, "clip_norm": 0.125}
    expected = trained_weights(**integers, **numbers)
    converted = {name: np.int64(value) for name, value in integers.items()}
    converted |= {name: np.float32(value) for name, value in numbers.items()}
    assert torch.equal(trained_weights(**converted), expected)


class PoolerOutput(nn.Sequential):
    """A trunk that returns an object with several outputs, as models of Hugging Face do."""

    def forward(self, images):
        features = super().forward(images)
        return SimpleNamespace(last_hidden_state=features.unflatten(1, (4, -1)), pooler_output=features)


@pytest.mark.parametrize("freeze_batch_norm", [True, False])
def test_a_trunk_can_return_its_features_as_pooler_output(freeze_batch_norm):
    model, expected = make_pretrained_model(), make_pretrained_model()
    model.trunk = PoolerOutput(*model.trunk)
    for each in (model, expected):
        torch.manual_seed(1)
        head, auxiliary = RotationPretextHead(256), SelfSupervisedRanking(256)
        settings = {"rotation_head": head, "auxiliary": auxiliary, "freeze_batch_norm": freeze_batch_norm}
        short_fit(each, **settings)
    assert torch.equal(weights(model), weights(expected))
    assert torch.equal(embed(model, IMAGES, output="features"), embed(expected, IMAGES, output="features"))


@pytest.mark.parametrize("key", ["image", "pixel_values"])
def test_items_can_be_dictionaries(key):
    items = [{"label": 3, key: image} for image in IMAGES]
    assert torch.equal(trained_weights(items, cluster_images=items), trained_weights())


def test_items_can_be_tuples():
    items = [(image, 3) for image in IMAGES]
    assert torch.equal(trained_weights(items), trained_weights())


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_model_ends_with_the_weights_of_the_same_model_uncompiled(whole, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot trace the type checks
    found = []
    for compiled in (False, True):
        model, head = make_pretrained_model(), RotationPretextHead(256, 8)
        norm = model.trunk[1]
        statistics = norm.running_mean.clone()
        trained = model
        if compiled and whole:
            trained = torch.compile(model, backend="eager")
        elif compiled:
            model.trunk = torch.compile(model.trunk, backend="eager")
        optimizer = torch.optim.SGD(parameter_groups(trained, criterion(), lr=0.1))
        settings = {"freeze_batch_norm": True, "max_steps": 4, "optimizer": optimizer, "callbacks": WeightAverage()}
        short_fit(trained, Augmented(), cluster_images=IMAGES, label_free=True, **settings)
        assert torch.equal(norm.running_mean, statistics)
        torch.manual_seed(1)
        short_fit(trained, rotation_head=head, max_steps=1)
        assert not torch.equal(norm.running_mean, statistics)
        found.append(weights(model))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("whole", [True, False])
def test_checkpoint_of_a_compiled_model_resumes_without_compilation(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    compiled = make_model()
    if whole:
        compiled = torch.compile(compiled, backend="eager")
    else:
        compiled.trunk = torch.compile(compiled.trunk, backend="eager")
    settings = {"callbacks": [WeightAverage(), BestWeights()], "relabel_every": 2, "max_steps": 6}
    first = {**settings, "callbacks": [*settings["callbacks"], Checkpoint(tmp_path, every=1)], "max_steps": 3}
    short_fit(compiled, Augmented(), cluster_images=IMAGES, **first)
    resumed, uninterrupted = make_model(), make_model()
    second = {**settings, "callbacks": [WeightAverage(), BestWeights(), Checkpoint(tmp_path, resume=True)]}
    short_fit(resumed, Augmented(), cluster_images=IMAGES, **second)
    short_fit(uninterrupted, Augmented(), cluster_images=IMAGES, **settings)
    assert torch.equal(weights(resumed), weights(uninterrupted))


def test_optimizer_that_does_not_hold_all_parameters_gives_a_warning_with_their_names():
    model, loss = make_model(), criterion(losses.ProxyAnchorLoss(16, 16))
    before = weights(loss)
    optimizer = torch.optim.SGD(model.embedder.parameters(), lr=0.1)
    names = r"model\.trunk\.0\.weight, model\.trunk\.0\.bias, model\.trunk\.1\.weight and 2 more"
    with pytest.warns(UserWarning, match=rf"`optimizer` does not hold {names}, which will not be trained\. Build"):
        short_fit(model, criterion=loss, optimizer=optimizer, max_steps=1)
    assert weights(loss).norm() == pytest.approx(before.norm())  # the proxies were only rotated to the centers


def test_optimizer_without_frozen_parameters_gives_no_warning():
    model = make_model()
    model.trunk.requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.embedder.parameters(), lr=0.1)
    assert short_fit(model, optimizer=optimizer, max_steps=1).stop_reason == "max_steps"


@pytest.mark.parametrize("rates", [{"lr": 0.1}, {"trunk_lr": 0.1, "lr": 0.1}])
def test_learning_rate_next_to_an_optimizer_raises_an_error(rates):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    listed = " and ".join(f"`{name}`" for name in rates)
    with pytest.raises(ValueError, match=rf"where one is given, got `optimizer` and {listed}\. Pass one of the two"):
        short_fit(model, optimizer=optimizer, **rates)


def test_learning_rates_are_those_of_the_default_optimizer():
    rates = []

    class Recording:
        def on_start(self, run):
            rates.append({group["name"]: group["lr"] for group in run.optimizer.param_groups})

    short_fit(make_model(), callbacks=Recording(), max_steps=1)
    short_fit(make_model(), callbacks=Recording(), max_steps=1, from_scratch=True)
    short_fit(make_model(), callbacks=Recording(), max_steps=1, trunk_lr=0.5, lr=0.25)
    assert rates == [dict.fromkeys(("trunk", "new parts"), rate) for rate in (3e-5, 1e-3)] + [
        {"trunk": 0.5, "new parts": 0.25}
    ]


def test_a_model_and_images_are_enough_and_the_defaults_are_those_of_the_documentation():
    few_classes = IMAGES[:60]  # three classes, fewer clusters than a batch usually has
    models = [make_pretrained_model() for _ in range(3)]
    lengths = {"max_steps": 6, "relabel_every": 1, "progress": False}
    result = fit(models[0], few_classes, **lengths)
    assert 2 <= result.pseudo_labels.n_clusters < 8
    loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
    explicit = {
        "labeler": ClusterPseudoLabeler(clusterer=Communities()),
        "criterion": UDMLSSLoss(loss, miner=miners.MultiSimilarityMiner(epsilon=0.1)),
        "views": 2,
        "samples_per_cluster": 5,
        "freeze_batch_norm": True,
        "trunk_lr": 3e-5,
        "lr": 3e-5,
        "average_weights": False,
    }
    fit(models[1], few_classes, callbacks=WeightAverage(0.95), **lengths, **explicit)
    assert torch.equal(weights(models[0]), weights(models[1]))
    fit(models[2], few_classes, **lengths, **explicit)
    assert not torch.equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize(("n_images", "lengths"), [(60, (250, 10)), (6000, (600, 75))])
def test_default_lengths_are_epochs_but_small_datasets_have_a_least_number_of_steps(n_images, lengths):
    rounds = Rounds(make_pretrained_model(), torch.zeros(n_images, 3, 8, 8))
    assert (rounds.n_steps, rounds.steps_per_round) == lengths
