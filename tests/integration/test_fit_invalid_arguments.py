"""Arguments that `fit` rejects before any work: no weight changes, and at most two images are loaded."""

from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import losses
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset

from udmlss import (
    BestWeights,
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    UDMLSSLoss,
    fit,
    parameter_groups,
)
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss

N, K, F, D = 24, 4, 6, 5


class Counted(Dataset):
    """Images that count how often one is loaded."""

    def __init__(self, images):
        self.images, self.n_loaded = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.n_loaded += 1
        return self.images[index]


def make_images(n=N, height=8, width=8):
    """Return images of K colors with a little noise."""
    generator = torch.Generator().manual_seed(1)
    colors = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 3, 3]])[torch.arange(n) % K]
    return Counted(colors[:, :, None, None] + 0.1 * torch.rand(n, 3, height, width, generator=generator))


def make_parts(*, pretrained=True):
    norm = nn.BatchNorm2d(F)
    if pretrained:
        norm.running_mean.normal_()
    trunk = nn.Sequential(nn.Conv2d(3, F, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return SimpleNamespace(
        model=EmbeddingModel(trunk, nn.Linear(F, D)),
        images=make_images(),
        criterion=UDMLSSLoss(losses.ProxyAnchorLoss(K, D)),
        rotation_head=RotationPretextHead(F, 8, max_images=4),
        labeler=ClusterPseudoLabeler(K),
        clusters_per_batch=2,
        samples_per_cluster=4,
        max_steps=2,
        relabel_every=1,
        progress=False,
    )


def run(parts, **changed):
    arguments = vars(parts) | changed
    return fit(arguments.pop("model"), arguments.pop("images"), **arguments)


def optimizer_of(parts):
    return torch.optim.SGD(parameter_groups(parts.model, parts.criterion, parts.rotation_head))


def value(**changed):
    return lambda _parts: changed


CHANGES = {
    "no images": (value(images=make_images(0)), ValueError, "`images` must hold at least one image, got none. Check"),
    "items that are PIL images": (
        value(images=Counted([Image.new("RGB", (8, 8))] * N)),
        TypeError,
        "image tensor (c, h, w), got Image in item 0. Give the dataset a transform that ends in a float tensor",
    ),
    "items of type uint8": (
        value(images=Counted(torch.zeros(N, 3, 8, 8, dtype=torch.uint8))),
        TypeError,
        "image tensor (c, h, w), got a uint8 tensor of shape (3, 8, 8) in item 0. Give the dataset a transform",
    ),
    "images that are not square": (
        value(images=make_images(height=8, width=6)),
        ValueError,
        "Rotated images must be square, got height 8 and width 6. Crop them square",
    ),
    "more clusters than images": (
        value(labeler=ClusterPseudoLabeler(N + 1)),
        ValueError,
        "`n_clusters=25` needs at least 25 images, got 24. Lower it, or add images.",
    ),
    "more neighbors than images": (value(labeler=ClusterPseudoLabeler(K, average_neighbors=N)), ValueError, "got 24."),
    "fewer clusters than in a batch": (
        value(clusters_per_batch=K + 1),
        ValueError,
        "`clusters_per_batch=5` needs at least 5 clusters, got `n_clusters=4`. Lower it, or raise `n_clusters`.",
    ),
    "one cluster in a batch": (
        value(clusters_per_batch=1),
        ValueError,
        "`clusters_per_batch` must be at least 2, got 1. Raise it.",
    ),
    "one image per cluster": (
        value(samples_per_cluster=1, views=1),
        ValueError,
        "`samples_per_cluster` must be at least 2, got 1. Raise it.",
    ),
    "no views": (value(views=0), ValueError, "`views` must be at least 1, got 0. Raise it."),
    "head for other features": (
        value(rotation_head=RotationPretextHead(F + 1)),
        ValueError,
        "`rotation_head` was built for 7 features, got a trunk that returns 6. Build RotationPretextHead(6).",
    ),
    "auxiliary loss for other features": (
        value(auxiliary=SelfSupervisedRanking(F + 1)),
        ValueError,
        "`auxiliary` was built for 7 features, got a trunk that returns 6. Build SelfSupervisedRanking(6).",
    ),
    "auxiliary loss that is not a module": (
        value(auxiliary=len),
        TypeError,
        "`auxiliary` must be a module that is called as auxiliary(model, images), got builtin_function_or_method. Pass",
    ),
    "metric loss as auxiliary loss": (
        value(auxiliary=SynthesisRankingLoss(D)),
        TypeError,
        "got SynthesisRankingLoss. Pass SelfSupervisedRanking(f); a loss of embeddings and labels belongs into UDMLSSL",
    ),
    "margins for other clusters": (
        value(criterion=losses.MarginLoss(learn_beta=True, num_classes=K + 1)),
        ValueError,
        "MarginLoss has parameters for 5 clusters and needs this number in every round, got 4. Use Cluster",
    ),
    "margins for a number of clusters that changes": (
        value(criterion=losses.MarginLoss(learn_beta=True, num_classes=K), labeler=ClusterPseudoLabeler()),
        ValueError,
        "got `ClusterPseudoLabeler(Communities(min_cluster_size=2))`, whose number of clusters changes. Use Cluster",
    ),
    "larger clusters than half of the images": (
        value(labeler=ClusterPseudoLabeler(images_per_cluster=N // 2 + 1)),
        ValueError,
        "`images_per_cluster=13` must be at most half of the number of images, got 24 images. Lower it, or add images.",
    ),
    "proxies of another dimension": (
        value(criterion=UDMLSSLoss(losses.ArcFaceLoss(K, D + 1))),
        ValueError,
        "ArcFaceLoss was built for embeddings of 6 dimensions, got 5. Build it with embedding size 5.",
    ),
    "synthesis of another dimension": (
        value(criterion=SynthesisRankingLoss(D + 1)),
        ValueError,
        "SynthesisRankingLoss was built for embeddings of 6 dimensions, got 5. Build it with embedding size 5.",
    ),
    "proxies of another dimension with any clusterer": (
        value(criterion=losses.ProxyAnchorLoss(K, D + 1), labeler=lambda rows: [0] * len(rows)),
        ValueError,
        "ProxyAnchorLoss was built for embeddings of 6 dimensions, got 5.",
    ),
    "loss class": (value(criterion=losses.ContrastiveLoss), TypeError, "Pass an instance"),
    "loss without labels": (value(criterion=losses.VICRegLoss()), TypeError, "`metric_loss` must learn from labels"),
    "model that is not an EmbeddingModel": (
        value(model=nn.Sequential(nn.Flatten(), nn.Linear(192, D))),
        TypeError,
        "`model` must be an EmbeddingModel, got Sequential. Wrap it: EmbeddingModel(trunk, embedder).",
    ),
    "model in a wrapper that distributes it": (
        lambda parts: {"model": nn.DataParallel(parts.model)},
        TypeError,
        "`model` must be an EmbeddingModel, got DataParallel. Pass the EmbeddingModel in it",
    ),
    "trunk that does not flatten": (
        lambda parts: {"model": EmbeddingModel(parts.model.trunk[:-1], parts.model.embedder)},
        ValueError,
        "The trunk must return features of shape (b, f), got shape (1, 6, 1, 1). End it in",
    ),
    "labeler class": (value(labeler=ClusterPseudoLabeler), TypeError, "Pass an instance, such as"),
    "number as labeler": (value(labeler=100), TypeError, "`labeler` must have `label(embeddings)`"),
    "scheduler of another optimizer": (
        lambda parts: {"optimizer": optimizer_of(parts), "scheduler": StepLR(optimizer_of(parts), 1)},
        ValueError,
        "`scheduler` must be built on `optimizer`, got one of another optimizer. Pass the optimizer that the",
    ),
    "scheduler without its optimizer": (
        lambda parts: {"scheduler": StepLR(optimizer_of(parts), 1)},
        ValueError,
        "`scheduler` must be built on `optimizer`, got one of another optimizer. Pass the optimizer that the",
    ),
    "scheduler that needs a score": (
        lambda parts: {"optimizer": (one := optimizer_of(parts)), "scheduler": ReduceLROnPlateau(one)},
        TypeError,
        "`scheduler` must not need a score to step, got ReduceLROnPlateau. Call its `step` in a callback.",
    ),
    "other images to cluster": (
        value(cluster_images=make_images(N - 1)),
        ValueError,
        "`cluster_images` must be the same images as `images`, got 23 and 24 images. Build both from the same files",
    ),
    "precision": (
        value(precision="float8"),
        ValueError,
        "`precision` must be one of 'float32', 'bfloat16', 'float16', got 'float8'. Pass one of these.",
    ),
    "cluster_on": (
        value(cluster_on="pixels"),
        ValueError,
        "`cluster_on` must be one of 'embeddings', 'features', got 'pixels'. Pass one of these.",
    ),
    "callback class": (value(callbacks=BestWeights), TypeError, "Pass an instance, such as BestWeights()."),
    "callback that cannot be called": (
        value(callbacks=[3]),
        TypeError,
        "A callback must be a function or an object with one of `on_start`, `on_step`, `on_round`, `on_end`, got 3.",
    ),
    "batch norm with initial statistics": (
        lambda _parts: {"model": make_parts(pretrained=False).model},
        ValueError,
        "running statistics of a trained model, got initial statistics in all 1 layers. Pass `from_scratch=True`",
    ),
}
NUMBERS = {  # besides those of test_numeric_settings.py
    **dict.fromkeys(("max_steps", "relabel_every", "clip_norm"), (0,)),
    "accumulate_grad_batches": (0, 2.0, None),
    "clusters_per_batch": (2.0,),
    **dict.fromkeys(("samples_per_cluster", "views"), (2.0, None)),
}
CHANGES |= {
    f"{name}={given!r}": (value(**{name: given}), (ValueError, TypeError), f"`{name}` must be ")
    for name, values in NUMBERS.items()
    for given in values
}


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the type checks of the tests, which reject some arguments before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def state_of(arguments):
    modules = [part for part in arguments.values() if isinstance(part, nn.Module)]
    tensors = [tensor.clone() for module in modules for tensor in module.state_dict().values()]
    return tensors, [part.training for module in modules for part in module.modules()], torch.get_rng_state()


def assert_rejected(parts, changed, error, message):
    before = state_of(vars(parts) | changed)
    with pytest.raises(error) as caught:
        run(parts, **changed)
    assert message in str(caught.value)
    torch.testing.assert_close(state_of(vars(parts) | changed), before, rtol=0, atol=0)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("change", "error", "message"), CHANGES.values(), ids=CHANGES)
def test_fit_rejects_invalid_arguments_before_any_work(change, error, message):
    parts = make_parts()
    changed = change(parts)
    assert_rejected(parts, changed, error, message)
    images = changed.get("images")
    assert (parts.images if images is None else images).n_loaded <= 2


def test_images_of_different_shapes_are_rejected_before_training():
    images = Counted([*make_images(N - 1).images, torch.rand(3, 9, 9)])
    message = "Images of a batch must have the same shape, got (3, 8, 8) in item 0 and (3, 9, 9) in item 23. Resize and"
    assert_rejected(make_parts(), {"images": images}, ValueError, message)


@pytest.mark.parametrize("head", [True, False])
def test_unchanged_arguments_of_these_tests_are_accepted(head):
    parts = make_parts()
    before = parts.model.trunk[0].weight.clone()
    result = run(parts) if head else run(parts, rotation_head=None, images=make_images(width=6))
    assert [report.step for report in result.history] == [1, 2]
    assert not torch.equal(before, parts.model.trunk[0].weight)


def test_batch_norm_with_initial_statistics_is_trained_if_it_is_not_frozen():
    parts = make_parts(pretrained=False)
    assert run(parts, freeze_batch_norm=False).stop_reason == "max_steps"
    assert parts.model.trunk[1].running_mean.any()


def test_embeddings_folder_must_exist(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(
            ValueError, match=rf"`embeddings_folder` must be an existing folder, got .*/{name}\. Create"
        ):
            run(make_parts(), embeddings_folder=tmp_path / name)


def test_embeddings_folder_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(make_parts(), embeddings_folder="~").stop_reason == "max_steps"
