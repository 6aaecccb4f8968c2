"""What `fit` refuses, all of it before any work: nothing was trained, and hardly an image was taken."""

from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from PIL import Image
from pytorch_metric_learning import losses
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset

from udmlss import ClusterPseudoLabeler, EmbeddingModel, Epochs, RotationPretextHead, UDMLSSLoss, fit, parameter_groups
from udmlss.losses import SelfSupervisedRanking, SynthesisRankingLoss

N, K, F, D = 24, 4, 6, 5


class Counted(Dataset):
    """Images that count how often one is asked for."""

    def __init__(self, images):
        self.images, self.taken = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.taken += 1
        return self.images[index]


def make_images(n=N, height=8, width=8):
    """Return images of K colours, a little noise on them."""
    draws = torch.Generator().manual_seed(1)
    colours = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [3, 3, 3]])[torch.arange(n) % K]
    return Counted(colours[:, :, None, None] + 0.1 * torch.rand(n, 3, height, width, generator=draws))


def mixed_images():
    return Counted([*make_images(N - 1).images, torch.rand(3, 9, 9)])


def make_parts(*, pretrained=True):
    norm = nn.BatchNorm2d(F)
    if pretrained:
        norm.running_mean.normal_()
    trunk = nn.Sequential(nn.Conv2d(3, F, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return SimpleNamespace(
        model=EmbeddingModel(trunk, nn.Linear(F, D)),
        images=make_images(),
        criterion=UDMLSSLoss(losses.ProxyAnchorLoss(K, D)),
        rotation_head=RotationPretextHead(F, 8),
        labeler=ClusterPseudoLabeler(K),
        clusters_per_batch=2,
        samples_per_cluster=4,
        rotation_images=4,
        max_steps=2,
        relabel_every=1,
        progress=False,
    )


def run(parts, **changed):
    arguments = vars(parts) | changed
    return fit(arguments.pop("model"), arguments.pop("images"), **arguments)


def optimizer_of(parts):
    return torch.optim.SGD(parameter_groups(parts.model, parts.criterion, parts.rotation_head))


def without_the_loss(parts):
    groups = parameter_groups(parts.model, parts.criterion, parts.rotation_head)
    return torch.optim.SGD([group for group in groups if group["name"] != "loss"])


def unflattened(parts):
    return EmbeddingModel(parts.model.trunk[:-1], parts.model.embedder)


def another(criterion):
    return lambda parts: {"criterion": criterion}


def value(**changed):
    return lambda parts: changed


# What is changed of parts that fit, the error, and the words its message must hold: rule, found, remedy.
REFUSALS = {
    "no images": (value(images=make_images(0)), ValueError, ("images", "found 0", "add images")),
    "no images for any clusterer": (
        lambda parts: {
            "images": make_images(0),
            "labeler": ClusterPseudoLabeler(clusterer=SimpleNamespace(fit_predict=len)),
        },
        ValueError,
        ("`images` must hold at least one image", "found none", "Look at the folder"),
    ),
    "items that are PIL images": (
        value(images=Counted([Image.new("RGB", (8, 8))] * N)),
        TypeError,
        ("image tensor (c h w)", "found Image in item 0", "ToTensor"),
    ),
    "items in uint8": (
        value(images=Counted(torch.zeros(N, 3, 8, 8, dtype=torch.uint8))),
        TypeError,
        ("image tensor (c h w)", "found a uint8 tensor of shape (3, 8, 8) in item 0", "ToTensor"),
    ),
    "images that are not square": (
        value(images=make_images(height=8, width=6)),
        ValueError,
        ("Rotation needs square images", "found height 8 and width 6", "`rotation_head=None`"),
    ),
    "more clusters than images": (
        value(labeler=ClusterPseudoLabeler(N + 1)),
        ValueError,
        ("`n_clusters=25` needs at least as many images", "found 24", "Lower it"),
    ),
    "as many neighbours as images": (
        value(labeler=ClusterPseudoLabeler(K, average_neighbors=N)),
        ValueError,
        ("`average_neighbors=24` needs more images than that", "found 24", "Lower it"),
    ),
    "fewer clusters than in a batch": (
        value(clusters_per_batch=K + 1),
        ValueError,
        ("`clusters_per_batch=5` needs at least 5 clusters", "found `n_clusters=4`", "Lower it"),
    ),
    "one cluster in a batch": (
        value(clusters_per_batch=1, rotation_images=1),
        ValueError,
        ("`clusters_per_batch` must be at least 2", "found 1", "Raise it"),
    ),
    "one image of a cluster": (
        value(samples_per_cluster=1, rotation_images=1),
        ValueError,
        ("`samples_per_cluster` must be at least 2", "found 1", "Raise it"),
    ),
    "no turned image": (
        value(rotation_images=0),
        ValueError,
        ("`rotation_images` must lie between 1 and the batch's 8", "found 0", "`rotation_head=None`"),
    ),
    "more turned images than in a batch": (
        value(rotation_images=9),
        ValueError,
        ("`rotation_images` must lie between 1 and the batch's 8", "found 9", "Lower it"),
    ),
    "a head for other features": (
        value(rotation_head=RotationPretextHead(F + 1)),
        ValueError,
        ("`rotation_head` was built for 7 features", "found a trunk that gives 6", "Build RotationPretextHead(6)"),
    ),
    "proxies for other clusters": (
        another(UDMLSSLoss(losses.ProxyAnchorLoss(K + 1, D))),
        ValueError,
        ("ProxyAnchorLoss holds parameters for 5 clusters", "found 4", "Use ClusterPseudoLabeler(5)"),
    ),
    "proxies of another dimension": (
        another(UDMLSSLoss(losses.ArcFaceLoss(K, D + 1))),
        ValueError,
        ("ArcFaceLoss was built for embeddings of 6 dimensions", "found 5", "Build it with embedding size 5"),
    ),
    "a bare metric loss": (
        another(losses.ContrastiveLoss()),
        TypeError,
        ("`criterion` must be a UDMLSSLoss", "found ContrastiveLoss", "UDMLSSLoss(ContrastiveLoss(...))"),
    ),
    "a model in one piece": (
        value(model=nn.Sequential(nn.Flatten(), nn.Linear(192, D))),
        TypeError,
        ("`model` must be an EmbeddingModel", "found Sequential", "EmbeddingModel(trunk, embedder)"),
    ),
    "a trunk that does not flatten": (
        lambda parts: {"model": unflattened(parts)},
        ValueError,
        ("The trunk must return features (b f)", "found shape (1, 6, 1, 1)", "nn.Flatten()"),
    ),
    "a labeler that cannot label": (
        value(labeler=SimpleNamespace(fit_predict=len)),
        TypeError,
        ("`labeler` must have `label(embeddings)`", "found SimpleNamespace", "ClusterPseudoLabeler(clusterer=...)"),
    ),
    "an optimizer without the proxies": (
        lambda parts: {"optimizer": without_the_loss(parts)},
        ValueError,
        ("`optimizer` must hold every", "1 left out, the first is criterion.metric_loss.proxies", "`parameter_groups("),
    ),
    "a scheduler of another optimizer": (
        lambda parts: {"optimizer": optimizer_of(parts), "scheduler": StepLR(optimizer_of(parts), 1)},
        ValueError,
        ("`scheduler` must be built on the `optimizer`", "found another one", "Pass the optimizer"),
    ),
    "an optimizer without the auxiliary": (
        lambda parts: {"auxiliary": SelfSupervisedRanking(F, 8, 4), "optimizer": optimizer_of(parts)},
        ValueError,
        ("`optimizer` must hold every", "4 left out, the first is auxiliary.layers.0.weight", "auxiliary=auxiliary"),
    ),
    "an auxiliary that is no module": (
        value(auxiliary=len),
        TypeError,
        ("`auxiliary` must be a module", "found builtin_function_or_method", "Pass SelfSupervisedRanking(f)"),
    ),
    "a metric loss as auxiliary": (
        value(auxiliary=SynthesisRankingLoss(D)),
        TypeError,
        ("`auxiliary` must be a module", "found SynthesisRankingLoss", "goes into UDMLSSLoss"),
    ),
    "an auxiliary for other features": (
        value(auxiliary=SelfSupervisedRanking(F + 1)),
        ValueError,
        ("`auxiliary` was built for 7 features", "found a trunk that gives 6", "Build SelfSupervisedRanking(6)"),
    ),
    "synthetic embeddings of another dimension": (
        another(UDMLSSLoss(SynthesisRankingLoss(D + 1))),
        ValueError,
        ("SynthesisRankingLoss was built for embeddings of 6 dimensions", "found 5", "Build it with embedding size 5"),
    ),
    "a scheduler without its optimizer": (
        lambda parts: {"scheduler": StepLR(optimizer_of(parts), 1)},
        ValueError,
        ("`scheduler` must be built on the `optimizer`", "found another one", "Pass the optimizer"),
    ),
    "a scheduler that needs a score": (
        lambda parts: {"optimizer": (one := optimizer_of(parts)), "scheduler": ReduceLROnPlateau(one)},
        TypeError,
        ("`scheduler` must step without a score", "found ReduceLROnPlateau", "in a callback"),
    ),
    "other images to cluster": (
        value(cluster_images=make_images(N - 1)),
        ValueError,
        ("`cluster_images` must be the same images", "found 23 and 24", "same files in the same order"),
    ),
    "float16": (
        value(precision="float16"),
        ValueError,
        ("`precision` must be one of 'float32', 'bfloat16'", "found 'float16'", "Pass one of these"),
    ),
    "an unknown first round": (
        value(first_round="pixels"),
        ValueError,
        ("`first_round` must be one of 'features', 'embeddings'", "found 'pixels'", "Pass one of these"),
    ),
    "a seed below zero": (value(seed=-1), ValueError, ("`seed` must be at least 0", "found -1", "Raise it")),
    "no steps": (value(max_steps=0), ValueError, ("`max_steps` must be at least 1", "found 0", "Raise it")),
    "no passes": (value(max_steps=Epochs(0)), ValueError, ("`max_steps` must be at least 1", "found 0", "Raise it")),
    "no steps in a round": (
        value(relabel_every=Epochs(0)),
        ValueError,
        ("`relabel_every` must be at least 1", "found 0", "Raise it"),
    ),
    "new batch norm to freeze": (
        lambda parts: {"model": make_parts(pretrained=False).model},
        ValueError,
        ("Freezing batch norm needs statistics", "found all 1 batch norms", "`freeze_batch_norm=False`"),
    ),
}


@pytest.fixture
def untyped(monkeypatch):
    """Switch off the types in the signatures, which refuse some parts before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def modules_in(arguments):
    return [part for part in arguments.values() if isinstance(part, nn.Module)]


def snapshot(modules):
    states = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    return states, [part.training for module in modules for part in module.modules()]


def assert_refused(parts, changed, error, words):
    arguments = vars(parts) | changed
    states, modes = snapshot(modules_in(arguments))
    before = torch.get_rng_state()
    with pytest.raises(error) as caught:
        run(parts, **changed)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    after, modes_after = snapshot(modules_in(arguments))
    for old, new in zip(states, after, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert modes_after == modes
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("change", "error", "words"), REFUSALS.values(), ids=REFUSALS)
def test_fit_refuses_before_any_work(change, error, words, untyped):
    parts = make_parts()
    changed = change(parts)
    assert_refused(parts, changed, error, words)
    assert (changed.get("images") or parts.images).taken <= 2


def test_images_of_different_shapes_are_refused_before_training(untyped):
    words = ("Images of a batch must have one shape", "(3, 8, 8) in item 0 and (3, 9, 9) in item 23", "Resize and crop")
    assert_refused(make_parts(), {"images": mixed_images()}, ValueError, words)


@pytest.mark.parametrize("head", [True, False])
def test_what_is_changed_in_these_tests_is_what_is_refused(head):
    parts = make_parts()
    before, _ = snapshot([parts.model])
    result = run(parts) if head else run(parts, rotation_head=None)
    assert [report.step for report in result.history] == [1, 2]
    after, _ = snapshot([parts.model])
    assert not torch.equal(before[0]["trunk.0.weight"], after[0]["trunk.0.weight"])


def test_without_a_head_the_number_of_turned_images_is_nobody_s_concern():
    assert run(make_parts(), rotation_head=None, rotation_images=16).ended == "max_steps"


def test_without_a_head_images_need_not_be_square():
    assert run(make_parts(), rotation_head=None, images=make_images(width=6)).ended == "max_steps"


def test_new_batch_norm_may_train():
    parts = make_parts(pretrained=False)
    assert run(parts, freeze_batch_norm=False).ended == "max_steps"
    assert parts.model.trunk[1].running_mean.any()


def test_an_optimizer_and_its_scheduler_are_taken():
    parts = make_parts()
    optimizer = optimizer_of(parts)
    scheduler = StepLR(optimizer, 1)
    assert run(parts, optimizer=optimizer, scheduler=scheduler).ended == "max_steps"
    assert scheduler.last_epoch == 2


def test_embeddings_go_to_a_folder_that_is_there(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "nowhere"):
        with pytest.raises(ValueError, match=rf"`embeddings_folder` must be a folder that is there, got .*/{name}\. "):
            run(make_parts(), embeddings_folder=tmp_path / name)


def test_remembered_embeddings_do_not_go_to_a_folder(tmp_path):
    sentence = r"`embeddings_folder` is for embeddings that each round makes anew, got `later_rounds=\"remembered\"`"
    with pytest.raises(ValueError, match=sentence):
        run(make_parts(), later_rounds="remembered", embeddings_folder=tmp_path)


@pytest.mark.parametrize(("choice", "found"), [({"keep": "best"}, '`keep="best"`'), ({"patience": 2}, "`patience=2`")])
def test_remembered_embeddings_give_no_scores_to_choose_by(choice, found):
    with pytest.raises(ValueError, match=f'`later_rounds="remembered"` takes no scores to choose by, got {found}'):
        run(make_parts(), later_rounds="remembered", **choice)
