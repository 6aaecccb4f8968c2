"""The checks of `fit` one by one; tests/integration/test_fit_refusals.py has them together."""

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from udmlss import ClusterPseudoLabeler, EmbeddingModel, Epochs, PseudoLabels, RotationPretextHead, UDMLSSLoss
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss
from udmlss.training.validation import (
    check_choices,
    check_ema_decay,
    check_images,
    check_optimizer,
    check_settings,
    check_sizes,
    in_steps,
)

IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class OwnLabeler:
    """Labels by order; how many clusters it makes is not known beforehand."""

    def label(self, embeddings):
        labels = torch.arange(len(embeddings)) % 2
        return PseudoLabels(labels, None, labels.bincount())


class OwnClusterer:
    def fit_predict(self, rows):
        raise NotImplementedError


def make_model(f=48, d=5):
    return EmbeddingModel(nn.Flatten(), nn.Linear(f, d))


def check(images=IMAGES, cluster_images=None, *, model=None, head=None, auxiliary=None, loss=None, labeler=None):
    check_images(
        images,
        cluster_images,
        model=make_model() if model is None else model,
        head=head,
        auxiliary=auxiliary,
        criterion=UDMLSSLoss(losses.ContrastiveLoss() if loss is None else loss),
        labeler=ClusterPseudoLabeler(2) if labeler is None else labeler,
    )


@pytest.fixture
def untyped(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@given(steps=st.integers(1, 10**6))
def test_steps_are_taken_as_they_are(steps):
    assert in_steps("max_steps", steps, n_images=7, batch_size=3) == steps


@given(passes=st.integers(1, 1000), n_images=st.integers(1, 10**5), batch_size=st.integers(1, 500))
@settings(deadline=None)
def test_passes_are_the_fewest_steps_that_draw_so_many_images(passes, n_images, batch_size):
    steps = in_steps("max_steps", Epochs(passes), n_images, batch_size)
    assert steps * batch_size >= passes * n_images > (steps - 1) * batch_size


@pytest.mark.parametrize(("passes", "steps"), [(0.5, 5), (0.51, 6), (0.001, 1)])
def test_a_pass_can_be_part_of_one(passes, steps):
    assert in_steps("relabel_every", Epochs(passes), n_images=100, batch_size=10) == steps


@pytest.mark.parametrize("name", ["max_steps", "relabel_every"])
@pytest.mark.parametrize("length", [0, -3, Epochs(0), Epochs(-1)])
def test_a_length_without_a_step_is_refused_by_its_name(name, length):
    with pytest.raises(ValueError, match=rf"`{name}` must be at least 1, got (0|-3|-2)\. Raise it"):
        in_steps(name, length, n_images=6, batch_size=3)


@pytest.mark.parametrize("labeler", [ClusterPseudoLabeler(2), OwnLabeler()])
def test_parts_of_the_right_kind_pass(labeler):
    check_settings(make_model(), UDMLSSLoss(losses.ContrastiveLoss()), labeler)


@pytest.mark.parametrize("first_round", ["features", "embeddings"])
@pytest.mark.parametrize("later_rounds", ["features", "embeddings", "remembered"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_choices_that_exist_pass(first_round, later_rounds, precision):
    check_choices(first_round, later_rounds, precision)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (("pixels", "features", "float32"), r"`first_round` must be one of 'features', 'embeddings', got 'pixels'"),
        (("features", "pixels", "float32"), r"`later_rounds` must be one of .*'remembered', got 'pixels'"),
        (("features", "features", "float16"), r"`precision` must be one of 'float32', 'bfloat16', got 'float16'"),
    ],
)
def test_choices_that_do_not_exist_are_refused(choices, sentence, untyped):
    with pytest.raises(ValueError, match=sentence):
        check_choices(*choices)


@pytest.mark.parametrize(
    ("position", "value", "error", "sentence"),
    [
        (0, nn.Linear(3, 3), TypeError, r"`model` must be an EmbeddingModel, got Linear\. Wrap it: EmbeddingModel\("),
        (
            1,
            losses.NTXentLoss(),
            TypeError,
            r"must be a UDMLSSLoss, got NTXentLoss\. Wrap it: UDMLSSLoss\(NTXentLoss",
        ),
        (2, OwnClusterer(), TypeError, r"must have `label\(embeddings\)`, got OwnClusterer\. .*clusterer=\.\.\.\)"),
        (2, None, TypeError, r"must have `label\(embeddings\)`, got NoneType\."),
        (3, len, TypeError, r"a module called as auxiliary\(model, images\), got builtin_.*\. Pass SelfSupervisedR"),
        (3, SynthesisRankingLoss(5), TypeError, r"found SynthesisRankingLoss\. .*goes into UDMLSSLoss"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_with_the_line_to_write(position, value, error, sentence, untyped):
    arguments = [make_model(), UDMLSSLoss(losses.ContrastiveLoss()), ClusterPseudoLabeler(2), None]
    arguments[position] = value
    with pytest.raises(error, match=sentence):
        check_settings(*arguments)


SIZES = {"clusters_per_batch": 4, "samples_per_cluster": 2, "views": 1}


@pytest.mark.parametrize(
    ("labeler", "n_images"),
    [
        (ClusterPseudoLabeler(4), 4),
        (ClusterPseudoLabeler(4), 100),
        (ClusterPseudoLabeler(clusterer=OwnClusterer()), 1),
        (OwnLabeler(), 1),
    ],
)
@pytest.mark.parametrize("rotation_images", [1, 8])
def test_sizes_at_their_limits_pass(labeler, n_images, rotation_images):
    check_sizes(
        labeler, n_images, clusters_per_batch=4, samples_per_cluster=2, views=1, rotation_images=rotation_images
    )


@pytest.mark.parametrize(
    ("n_clusters", "n_images", "rotation_images", "sentence"),
    [
        (4, 3, 1, "`n_clusters=4` needs at least as many images, got 3. Lower it, or add images."),
        (3, 9, 1, "`clusters_per_batch=4` needs at least 4 clusters, got `n_clusters=3`. Lower it, or raise `n_"),
        (
            4,
            9,
            0,
            "`rotation_images` must lie between 1 and the batch's 8 images, got 0. Lower it, or pass `rotation_",
        ),
        (4, 9, 9, "`rotation_images` must lie between 1 and the batch's 8 images, got 9."),
    ],
)
def test_sizes_past_their_limits_are_refused(n_clusters, n_images, rotation_images, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole sentence is compared)
        check_sizes(
            ClusterPseudoLabeler(n_clusters),
            n_images,
            clusters_per_batch=4,
            samples_per_cluster=2,
            views=1,
            rotation_images=rotation_images,
        )
    assert str(caught.value).startswith(sentence)


def test_turned_images_may_be_as_many_as_the_views_of_a_batch():
    sizes = {"clusters_per_batch": 4, "samples_per_cluster": 1, "views": 3}
    check_sizes(ClusterPseudoLabeler(4), 9, **sizes, rotation_images=12)
    with pytest.raises(ValueError, match=r"between 1 and the batch's 12 images, got 13"):
        check_sizes(ClusterPseudoLabeler(4), 9, **sizes, rotation_images=13)


@pytest.mark.parametrize("ema_decay", [None, 0.001, 0.999])
def test_an_average_that_forgets_and_keeps_passes(ema_decay):
    check_ema_decay(ema_decay)


@pytest.mark.parametrize("ema_decay", [0.0, 1.0, -0.1, 2.0])
def test_an_average_that_forgets_all_or_nothing_is_refused(ema_decay):
    with pytest.raises(ValueError, match=r"`ema_decay` must lie between 0 and 1, got .* Values from 0.9 to 0.999"):
        check_ema_decay(ema_decay)


def test_an_optimizer_of_everything_passes_with_its_own_scheduler():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_optimizer(optimizer, StepLR(optimizer, 1), model=model, rotation_head=None)
    check_optimizer(optimizer, None, model=model, rotation_head=None)


def test_a_scheduler_that_needs_a_score_is_refused(untyped):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"must step without a score, got ReduceLROnPlateau\. Step that one yourself"):
        check_optimizer(optimizer, ReduceLROnPlateau(optimizer), model=model)


def test_a_scheduler_of_another_optimizer_is_refused():
    model = make_model()
    one, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(ValueError, match=r"`scheduler` must be built on the `optimizer` passed with it, got another"):
        check_optimizer(one, StepLR(other, 1), model=model)


@pytest.mark.parametrize("head", [None, RotationPretextHead(48)])
@pytest.mark.parametrize("cluster_images", [None, IMAGES.clone(), [image[:, :, :] for image in IMAGES]])
@pytest.mark.parametrize("loss", [losses.ContrastiveLoss(), losses.ProxyAnchorLoss(2, 5)])
def test_images_that_go_through_the_parts_pass(head, cluster_images, loss):
    check(head=head, cluster_images=cluster_images, loss=loss)


@pytest.mark.parametrize("auxiliary", [SelfSupervisedRanking(48), nn.Linear(3, 3)])
def test_an_auxiliary_that_fits_or_of_which_nothing_is_known_passes(auxiliary):
    check(auxiliary=auxiliary)


def test_only_the_first_image_is_looked_at_and_the_model_is_left_as_it_was():
    taken = []

    class Watched(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    model = EmbeddingModel(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), nn.Linear(48, 5)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check(Watched(IMAGES), model=model)
    assert taken == [0]
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": IMAGES[:0]}, "`images` must hold at least one image"),
        (
            {"images": IMAGES[..., :3], "head": RotationPretextHead(36)},
            "needs square images, got height 4 and width 3",
        ),
        (
            {"cluster_images": IMAGES[:5]},
            r"`cluster_images` must be the same images as `images`, got 5 and 6\. Build both from the same files",
        ),
        (
            {"head": RotationPretextHead(47)},
            r"`rotation_head` was built for 47 features, got a trunk that gives 48\.",
        ),
        ({"head": RotationPretextHead(47)}, r"Build RotationPretextHead\(48\)\."),
        (
            {"auxiliary": SelfSupervisedRanking(47)},
            r"`auxiliary` was built for 47 features, got a trunk that gives 48\. Build SelfSupervisedRanking\(48\)\.",
        ),
        ({"loss": SynthesisRankingLoss(6)}, r"was built for embeddings of 6 dimensions, got 5\."),
        ({"loss": losses.ProxyAnchorLoss(3, 5)}, r"holds parameters for 3 clusters .* found 2\."),
        ({"loss": losses.ProxyAnchorLoss(2, 6)}, r"was built for embeddings of 6 dimensions, got 5\."),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(**arguments)


def test_without_a_head_images_need_not_be_square():
    check(IMAGES[..., :3], model=make_model(36))


def test_with_another_number_of_clusters_in_every_round_the_dimension_is_checked_all_the_same():
    with pytest.raises(ValueError, match=r"was built for embeddings of 6 dimensions, got 5\."):
        check(loss=losses.ProxyAnchorLoss(2, 6), labeler=OwnLabeler())


def test_an_item_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match=r"found a float32 tensor of shape \(4, 4\) in item 0"):
        check(IMAGES[:, 0])
