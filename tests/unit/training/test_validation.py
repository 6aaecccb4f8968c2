"""Checks of arguments at their limits; tests/integration/test_fit_invalid_arguments.py has the errors."""

import threading
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from torch import nn
from torch.optim.lr_scheduler import StepLR

from udmlss import ClusterPseudoLabeler, EmbeddingModel, Epochs, RotationPretextHead, Rounds, UDMLSSLoss, fit
from udmlss.losses import SelfSupervisedRanking
from udmlss.training.optim import check_optimizer
from udmlss.training.validation import check_augmented, check_images, check_sizes, in_steps

IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def make_run(images=IMAGES, *, model=None, head=None, auxiliary=None, loss=None, **settings):
    """Return what `check_images` reads of a run."""
    model = model or EmbeddingModel(nn.Flatten(), nn.Linear(images[0].numel(), 5))
    rounds = Rounds(model, images, ClusterPseudoLabeler(2), clusters_per_batch=2, **settings)
    criterion = UDMLSSLoss(loss or losses.ContrastiveLoss())
    return SimpleNamespace(rounds=rounds, model=model, rotation_head=head, auxiliary=auxiliary, criterion=criterion)


@given(steps=st.integers(1, 10**6))
def test_integers_are_numbers_of_steps(steps):
    assert in_steps("max_steps", steps, n_images=7, batch_size=3) == steps


@given(epochs=st.integers(1, 1000), n_images=st.integers(1, 10**5), batch_size=st.integers(1, 500))
@settings(deadline=None)
def test_epochs_are_the_smallest_number_of_steps_with_that_many_images(epochs, n_images, batch_size):
    steps = in_steps("max_steps", Epochs(epochs), n_images, batch_size)
    assert steps * batch_size >= epochs * n_images > (steps - 1) * batch_size


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 5), (0.51, 6), (0.001, 1)])
def test_epochs_can_be_fractions(epochs, steps):
    assert in_steps("relabel_every", Epochs(epochs), n_images=100, batch_size=10) == steps


@pytest.mark.parametrize("name", ["max_steps", "relabel_every"])
def test_error_names_the_length(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got 0\. Raise it"):
        in_steps(name, 0, n_images=6, batch_size=3)


SIZES = {"clusters_per_batch": 4, "samples_per_cluster": 2, "views": 1}


@pytest.mark.parametrize("n_images", [4, 100])
def test_smallest_number_of_clusters_and_images_is_accepted(n_images):
    check_sizes(ClusterPseudoLabeler(4), n_images, **SIZES)
    check_sizes(ClusterPseudoLabeler(4), n_images, **SIZES | {"samples_per_cluster": 1, "views": 2})


@pytest.mark.parametrize("labeler", [ClusterPseudoLabeler(len), SimpleNamespace(label=len)])
def test_unknown_number_of_clusters_is_accepted(labeler):
    check_sizes(labeler, 1, **SIZES)


@pytest.mark.parametrize(
    ("n_clusters", "n_images", "message"),
    [
        (4, 3, r"`n_clusters=4` needs at least 4 images, got 3\."),
        (3, 9, r"`clusters_per_batch=4` needs at least 4 clusters, got `n_clusters=3`\."),
    ],
)
def test_too_few_images_or_clusters_are_rejected(n_clusters, n_images, message):
    with pytest.raises(ValueError, match=message):
        check_sizes(ClusterPseudoLabeler(n_clusters), n_images, **SIZES)


def test_complete_optimizer_is_accepted_with_its_scheduler():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer(optimizer, StepLR(optimizer, 1), {"model": model})
    check_optimizer(optimizer, None, {"model": model})


@pytest.mark.parametrize("head", [None, RotationPretextHead(48)])
@pytest.mark.parametrize("cluster_images", [None, list(IMAGES)])
@pytest.mark.parametrize("loss", [losses.ContrastiveLoss(), losses.ProxyAnchorLoss(2, 5)])
def test_parts_that_fit_the_images_are_accepted(head, cluster_images, loss):
    check_images(make_run(head=head, loss=loss, cluster_images=cluster_images))


@pytest.mark.parametrize("auxiliary", [SelfSupervisedRanking(48), nn.Linear(3, 3)])
def test_auxiliary_loss_for_these_features_or_of_another_class_is_accepted(auxiliary):
    check_images(make_run(auxiliary=auxiliary))


def test_images_need_not_be_square_without_a_rotation_head():
    check_images(make_run(IMAGES[..., :3]))
    with pytest.raises(ValueError, match=r"must be square, got height 4 and width 3"):
        check_images(make_run(IMAGES[..., :3], head=RotationPretextHead(36)))


class Counting(nn.Module):
    """A loss or an auxiliary loss with a state that no `state_dict` holds."""

    def __init__(self):
        super().__init__()
        self.calls, self.generator = [], torch.Generator()

    def forward(self, *arguments):
        self.calls.append(arguments)
        return torch.rand((), generator=self.generator)


def test_the_check_does_not_change_the_parts():
    trunk = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout())
    model = EmbeddingModel(trunk, nn.Linear(48, 5)).train()
    loss, auxiliary = Counting(), Counting()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    check_images(make_run(model=model, loss=loss, auxiliary=auxiliary))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for part in (loss, auxiliary):
        assert part.calls == []
        assert torch.equal(part.generator.get_state(), torch.Generator().get_state())


def test_a_model_that_cannot_be_copied_is_checked_in_evaluation_mode():
    model = EmbeddingModel(nn.Flatten(), nn.Linear(48, 5))
    model.lock = threading.Lock()
    model.trunk.register_forward_hook(lambda module, *_: modes.append(module.training))
    modes = []
    check_images(make_run(model=model))
    assert modes == [False]
    assert model.training
    with pytest.raises(ValueError, match=r"The embedder must accept .* features of shape \(1, 64\) and RuntimeError"):
        check_images(make_run(torch.rand(6, 4, 4, 4), model=model))


class InTraining(nn.Flatten):
    """A trunk that returns a second output in training mode, as some classifiers do."""

    def forward(self, images):
        features = super().forward(images)
        return (features, features) if self.training else features


class WithAttention(nn.Linear):
    """An embedder that returns a second output."""

    def forward(self, features):
        return super().forward(features), None


UNSUITABLE = {
    "size": (
        torch.rand(6, 3, 5, 5),
        {},
        r"embedder must accept .* shape \(1, 75\) and RuntimeError: .*\. Build it for 75",
    ),
    "channels": (
        torch.rand(6, 1, 4, 4),
        {"model": EmbeddingModel(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten()), nn.Linear(48, 5))},
        r"trunk must accept the images, got images of shape \(1, 4, 4\) in `{name}` and RuntimeError: .*\. Resize or",
    ),
    "no numbers": (
        torch.full((6, 3, 4, 4), torch.nan),
        {},
        r"Embeddings must be finite before .* 1 images in `{name}`",
    ),
}


@pytest.mark.parametrize("name", ["images", "cluster_images"])
@pytest.mark.parametrize(("images", "changes", "message"), UNSUITABLE.values(), ids=UNSUITABLE)
def test_images_that_the_model_does_not_accept_are_named_before_any_pass(name, images, changes, message):
    datasets = {"images": IMAGES, "cluster_images": IMAGES} | {name: images}
    model = EmbeddingModel(nn.Flatten(), nn.Linear(48, 5))
    run = make_run(**{"model": model} | datasets | changes)
    run.rounds.labeler = None
    for check in (lambda: check_images(run), lambda: next(iter(run.rounds))):
        with pytest.raises(ValueError, match=message.replace("{name}", name)):
            check()


@pytest.mark.parametrize(
    ("trunk", "embedder", "error", "message"),
    [
        (
            nn.Flatten(),
            nn.Sequential(nn.Linear(48, 4), nn.Unflatten(1, (2, 2))),
            ValueError,
            r"\(1, 2, 2\) for 1 images",
        ),
        (InTraining(), nn.Linear(48, 5), TypeError, r"The trunk must return a tensor \(b, f\), got tuple"),
        (
            nn.Flatten(),
            WithAttention(48, 5),
            TypeError,
            r"The embedder must return a tensor .*, got tuple\. Wrap",
        ),
    ],
)
def test_outputs_of_another_form_are_rejected(trunk, embedder, error, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        check_images(make_run(model=EmbeddingModel(trunk, embedder)))


def returns(value):
    """Return a module that returns this value for any arguments."""
    module = nn.Module()
    module.forward = lambda *_: value
    return module


@pytest.mark.parametrize("name", ["loss", "auxiliary"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.rand(8), ValueError, r"must return a scalar, got shape \(8,\)\. Return its mean"),
        ({"loss": torch.rand(())}, TypeError, "must return a scalar tensor, got dict"),
        (0.0, TypeError, "must return a scalar tensor, got float"),
        (None, TypeError, "must return a scalar tensor, got NoneType"),
    ],
)
def test_losses_that_return_no_scalar_are_rejected(name, value, error, message):
    parameter = "metric_loss" if name == "loss" else "auxiliary"
    with pytest.raises(error, match=f"`{parameter}` {message}"):
        check_images(make_run(**{name: returns(value)}))


def test_a_loss_that_rejects_arbitrary_labels_is_accepted():
    def loss(_embeddings, labels):
        raise KeyError(labels)

    check_images(make_run(loss=loss))


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: nn.Linear(48, 5, device="meta"), r"parameters with values, got embedder\.weight on the meta device"),
        (lambda: nn.Linear(48, 5).requires_grad_(requires_grad=False), "parameters that require a gradient, got none"),
    ],
)
def test_a_model_that_cannot_be_trained_is_rejected(make_model, message):
    with pytest.raises(ValueError, match=rf"`model` must have {message}"):
        fit(EmbeddingModel(nn.Flatten(), make_model()), IMAGES, labeler=len, criterion=losses.ContrastiveLoss())


def test_optimizer_that_needs_a_closure_is_rejected():
    model = nn.Linear(2, 2)
    with pytest.raises(
        TypeError, match=r"must step without arguments, got LBFGS, whose `step` needs a closure\. Use Ad"
    ):
        check_optimizer(torch.optim.LBFGS(model.parameters()), None, {"model": model})


class OtherAdam(torch.optim.AdamW):
    """An optimizer of another library, which may round at random."""


def test_half_precision_weights_are_rejected_or_warned_of():
    half, brain = nn.Linear(2, 2).half(), nn.Linear(2, 2).bfloat16()
    with pytest.raises(
        ValueError, match=r"must not be in float16.*, got float16 in model\.weight, model\.bias\. Call `\.f"
    ):
        check_optimizer(torch.optim.AdamW(half.parameters()), None, {"model": half})
    with pytest.warns(
        UserWarning, match=r"should be in float32.*, got bfloat16 in model\.weight, model\.bias\. Call `\.fl"
    ):
        check_optimizer(torch.optim.SGD(brain.parameters()), None, {"model": brain})
    check_optimizer(OtherAdam(brain.parameters()), None, {"model": brain})
    head = nn.Linear(2, 2).double()
    parts = {"model": half.requires_grad_(requires_grad=False), "rotation_head": head}
    check_optimizer(torch.optim.AdamW([*half.parameters(), *head.parameters()]), None, parts)


def test_item_that_is_not_an_image_is_rejected(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"got a float32 tensor of shape \(4, 4\) in item 0"):
        check_images(make_run(IMAGES[:, 0]))


class Augmented(list):
    """Images with random brightness."""

    def __getitem__(self, index):
        return super().__getitem__(index) + torch.rand(())


def test_random_augmentations_are_found_with_and_without_cluster_images():
    augmented = Augmented(IMAGES)
    check_augmented(make_run(augmented, cluster_images=IMAGES).rounds)
    check_augmented(make_run(augmented).rounds)
    plain = make_run(IMAGES, cluster_images=IMAGES.clone()).rounds
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"augmented at random, got equal views of the first 6 images\. Give"):
        check_augmented(plain)
    assert torch.equal(torch.get_rng_state(), before)
