"""What runs on a GPU gives what runs on the CPU: on a real one where there is one, on a pretended one everywhere."""

import pytest
import torch
from pretended_gpu import pretended_gpu
from pytorch_metric_learning import losses, miners
from sklearn.cluster import KMeans
from torch import nn

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    PseudoLabelSampler,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    embedder_from_features,
    evaluate,
    evaluate_embeddings,
    fit,
    label_free_scores,
)
from udmlss.clustering.kmeans import k_means
from udmlss.losses import (
    CBSwRLoss,
    CenterSoftmaxLoss,
    ClusteringHead,
    ClusterNCALoss,
    Decoder,
    NearestPositiveLoss,
    SelfSupervisedRanking,
    STMLLoss,
    SynthesisRankingLoss,
)
from udmlss.neighbors import pair_with_neighbors

DEEP_METRIC = [
    deep_metric.contrastive,
    deep_metric.binomial_deviance,
    deep_metric.lifted_structure,
    deep_metric.multi_similarity,
    deep_metric.hard_mining,
    deep_metric.nca,
    deep_metric.batch_all,
    deep_metric.batch_hard,
    deep_metric.distance_weighted_margin,
]

IMAGES = torch.rand(48, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(48) % 6
ROWS = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(300) % 20


def on(kind, monkeypatch, pretended):
    if kind == "real":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        yield torch.device("cuda")
    else:
        with pretended_gpu(monkeypatch, pretended) as device:
            yield device


@pytest.fixture(params=["pretended", "real"])
def gpu(request, monkeypatch):
    yield from on(request.param, monkeypatch, "lazy")


@pytest.fixture(params=["pretended", "real"])
def cuda(request, monkeypatch):
    """A GPU that calls itself CUDA; a pretended one has no autograd."""
    yield from on(request.param, monkeypatch, "cuda")


def build(device="cpu", seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    trunk[1].running_mean += 0.1  # as if trained
    return EmbeddingModel(trunk, nn.Linear(32, 8)).to(device)


def close(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-3, atol=1e-4)


def test_two_devices_do_not_mix(gpu):
    there = ROWS.to(gpu)
    assert there.device.type == gpu.type
    for mixed in (lambda: there + ROWS, lambda: ROWS[there[:, 0] > 0], there.numpy, lambda: there @ ROWS.T):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()
    assert torch.equal((there + 1).cpu(), ROWS + 1)
    assert torch.equal(there[CLASSES == 1].cpu(), ROWS[CLASSES == 1])


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_scores_are_those_of_the_processor(cuda):
    expected = evaluate_embeddings(ROWS, CLASSES, seed=3)
    found = evaluate_embeddings(ROWS.to(cuda), CLASSES, seed=3)
    assert found.recall_at == pytest.approx(expected.recall_at)
    assert found.map_at_r == pytest.approx(expected.map_at_r)
    apart = evaluate_embeddings(ROWS.to(cuda), CLASSES.to(cuda), queries=ROWS[:50], query_labels=CLASSES[:50])
    assert apart.recall_at[1] == 1
    found = evaluate(build(cuda), IMAGES, LABELS)
    assert found.recall_at == pytest.approx(evaluate(build(), IMAGES, LABELS).recall_at)


@pytest.mark.parametrize("k", [2, 20, 150])
def test_clusters_are_as_good_as_those_of_the_processor(gpu, k):
    points = ROWS.to(gpu)
    found, expected = k_means(points, k), k_means(ROWS, k)
    assert found.device.type == "cpu"
    assert found.bincount(minlength=k).min() > 0
    spread = [
        sum(float((ROWS[labels == each] - ROWS[labels == each].mean(dim=0)).square().sum()) for each in range(k))
        for labels in (found, expected)
    ]
    assert spread[0] < 1.1 * spread[1]
    started = [k_means(each, k, start=ROWS[:k]) for each in (points, ROWS)]
    assert torch.equal(*started)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"warm_start": False},
        {"average_neighbors": 3},
        {"whiten_first": 5},
        {"n_clusters": None, "clusterer": KMeans(8)},
    ],
)
def test_rounds_are_labelled_there(gpu, settings):
    labeler = ClusterPseudoLabeler(**({"n_clusters": 8} | settings), device=gpu)
    for rows in (ROWS, ROWS.to(gpu) + 0.1):
        pseudo = labeler.label(rows)
    assert pseudo.labels.device.type == pseudo.centers.device.type == "cpu"
    assert pseudo.agreement is not None
    assert len(list(PseudoLabelSampler(pseudo.labels.to(gpu), 4, 4, n_batches=2))) == 2


def test_embeddings_are_judged_there(gpu):
    of = torch.arange(0, 300, 3)
    views = ROWS[of] + 0.5 * torch.randn(100, 16)
    expected = label_free_scores(ROWS, views, of)
    for found in (
        label_free_scores(ROWS.to(gpu), views, of),
        label_free_scores(ROWS.to(gpu), views.to(gpu), of.to(gpu)),
    ):
        assert vars(found) == pytest.approx(vars(expected), rel=1e-3)
    assert vars(label_free_scores(ROWS, views.to(gpu), of.to(gpu))) == pytest.approx(vars(expected), rel=1e-3)


def test_images_are_embedded_there_and_come_back(gpu):
    for settings in ({}, {"what": "features"}, {"channels_last": True}):
        found = embed(build(gpu), IMAGES, batch_size=20, **settings)
        assert found.device.type == "cpu"
        close(found, embed(build(), IMAGES, batch_size=20, **settings))


def test_parts_around_training_run_there(gpu):
    assert torch.equal(pair_with_neighbors(ROWS.to(gpu), share=1).cpu(), pair_with_neighbors(ROWS, share=1))
    layer = embedder_from_features(ROWS.to(gpu), 4)
    rows = ROWS.to(gpu)
    assert layer(rows).shape == (300, 4)


METRIC_LOSSES = {
    "multi-similarity": lambda: UDMLSSLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner()),
    "supervised contrastive": lambda: UDMLSSLoss(losses.SupConLoss()),
    "proxies": lambda: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8)),
    "memory": lambda: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 64)),
    "nearest positive": lambda: UDMLSSLoss(NearestPositiveLoss()),
    "cluster NCA": lambda: UDMLSSLoss(ClusterNCALoss(4)),
    **{make.__name__: lambda make=make: UDMLSSLoss(make()) for make in DEEP_METRIC},
}


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_metric_losses_and_their_gradients_are_those_of_the_processor(gpu, name):
    found = []
    for device in ("cpu", gpu):
        torch.manual_seed(0)
        criterion, rows = METRIC_LOSSES[name]().to(device), ROWS[:24, :8].to(device).requires_grad_()
        loss = criterion(rows, LABELS[:24])
        loss.backward()
        found.append((loss.detach(), rows.grad))
    for here, there in zip(*found, strict=True):
        close(there, here)


def center_softmax(device):
    views = ROWS[:24, :8].to(device)
    return CenterSoftmaxLoss()(views, views + 0.1, LABELS[:24], ROWS[:6, :8].to(device))


def self_taught(device):
    views = ROWS[:24, :8].to(device)
    return STMLLoss()(views, views + 0.1, views + 0.2, torch.arange(12).repeat(2))


def self_supervised_ranking(device):
    return SelfSupervisedRanking(32).to(device)(build(device), IMAGES.to(device))


def synthesis_ranking(device):
    anchor = losses.ProxyAnchorLoss(6, 8).to(device)
    return UDMLSSLoss(SynthesisRankingLoss(8, proxies=anchor.proxies).to(device))(ROWS[:24, :8].to(device), LABELS[:24])


def cbswr(device):
    maps, pool = nn.Conv2d(3, 16, 2, stride=2).to(device), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = EmbeddingModel(nn.Sequential(maps, pool), nn.Linear(16, 8)).to(device)
    criterion = CBSwRLoss(ClusteringHead(8, 4), Decoder((16, 6, 6), (3, 12, 12))).to(device)
    views = IMAGES[:12].to(device)
    return criterion(maps(views), model(views), views, lambda found: model.embed_features(pool(found)))


@pytest.mark.parametrize("loss", [center_softmax, self_taught, self_supervised_ranking, synthesis_ranking, cbswr])
def test_other_losses_run_there(gpu, loss):
    torch.manual_seed(0)
    found = loss(gpu)
    assert found.device.type == gpu.type
    assert torch.isfinite(found.detach().cpu())


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index] + 0.2 * torch.randn(3, 12, 12)


def short_fit(device, *, weights=0, **changes):
    model = build(device, weights)
    settings = {
        "labeler": ClusterPseudoLabeler(6),
        "criterion": UDMLSSLoss(losses.MultiSimilarityLoss()),
        "rotation_head": RotationPretextHead(32),
        "clusters_per_batch": 4,
        "samples_per_cluster": 3,
        "rotation_images": 4,
        "max_steps": 5,
        "relabel_every": 2,
        "freeze_batch_norm": False,
        "progress": False,
    }
    settings |= {name: change(device) if callable(change) else change for name, change in changes.items()}
    result = fit(model, Noisy(), **settings)
    return model, settings, result


SETTINGS = {
    "plain": {},
    "no rotation, norms frozen": {"rotation_head": None, "freeze_batch_norm": True},
    "averages": {"ema_decay": 0.9, "views": 2, "clip_norm": 1.0, "channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "best": {"keep": "best", "patience": 5},
    "features": {"later_rounds": "features", "cluster_images": IMAGES},
    "remembered": {"later_rounds": "remembered"},
    "proxies": {"criterion": lambda _: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8))},
    "memory": {"criterion": lambda _: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 64))},
    "auxiliary": {"auxiliary": lambda _: SelfSupervisedRanking(32)},
    "clusters": {"labeler": lambda gpu: ClusterPseudoLabeler(6, device=gpu)},
    "neighbours": {"labeler": lambda _: ClusterPseudoLabeler(6, average_neighbors=3)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_fit_trains_there_as_on_the_processor(gpu, name):
    changes = SETTINGS[name]
    model, settings, result = short_fit(gpu, **changes)
    assert len(result.history) == 3
    parts = [model, settings["criterion"], settings["rotation_head"], settings.get("auxiliary")]
    for part in parts:
        assert part is None or all(each.device.type == gpu.type for each in part.state_dict().values())
    expected, _, _ = short_fit("cpu", **changes)
    if gpu.type == "lazy" and name != "bfloat16":  # its numbers are the processor's, and float32
        for there, here in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(there.detach().cpu(), here.detach())


@pytest.mark.parametrize("name", ["plain", "averages", "proxies", "memory", "remembered"])
def test_a_run_resumed_there_ends_as_the_uninterrupted_one(gpu, tmp_path, name):
    changes = SETTINGS[name]
    whole, _, _ = short_fit(gpu, **changes)

    saved = {"checkpoint": tmp_path, "checkpoint_every": 1}
    short_fit(gpu, **changes, **saved)
    for path in sorted(tmp_path.glob("*.pt"))[1:]:
        path.unlink()
    resumed, _, _ = short_fit(gpu, weights=1, **changes, **saved, resume=True)  # its own weights would end elsewhere
    for there, here in zip(resumed.parameters(), whole.parameters(), strict=True):
        close(there.detach(), here.detach())
