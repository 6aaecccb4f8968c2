"""Results on a GPU equal those on the CPU: on a real GPU if there is one, and on a pretended one everywhere."""

from inspect import isfunction

import pytest
import torch
from deep_metric_losses import LOSSES as DEEP_METRIC_LOSSES
from pretended_gpu import pretended_gpu
from pytorch_metric_learning import losses, miners
from sklearn.cluster import KMeans
from torch import nn

from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    EarlyStopping,
    EmbeddingModel,
    PseudoLabelSampler,
    RotationPretextHead,
    UDMLSSLoss,
    WeightAverage,
    _chunks,
    embed,
    embedder_from_features,
    evaluate,
    evaluate_embeddings,
    fit,
    label_free_scores,
    pair_with_neighbors,
)
from udmlss.clustering.kmeans import k_means
from udmlss.losses import (
    CBSwRLoss,
    CenterSoftmaxLoss,
    ClusteringHead,
    Decoder,
    SelfSupervisedRanking,
    STMLLoss,
    SynthesisRankingLoss,
)
from udmlss.neighbors import nearest
from udmlss.neighbors.backends import search_on
from udmlss.search import SearchIndex

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


def assert_near(found, expected):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-3, atol=1e-4)


def test_tensors_on_two_devices_cannot_be_combined(gpu):
    rows = ROWS.to(gpu)
    assert rows.device.type == gpu.type
    for mixed in (lambda: rows + ROWS, lambda: ROWS[rows[:, 0] > 0], rows.numpy, lambda: rows @ ROWS.T):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()
    assert torch.equal((rows + 1).cpu(), ROWS + 1)
    assert torch.equal(rows[CLASSES == 1].cpu(), ROWS[CLASSES == 1])


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_scores_equal_those_on_the_cpu(cuda):
    expected = evaluate_embeddings(ROWS, CLASSES, seed=3)
    found = evaluate_embeddings(ROWS.to(cuda), CLASSES, seed=3)
    assert found.recall_at == pytest.approx(expected.recall_at)
    assert found.map_at_r == pytest.approx(expected.map_at_r)
    of_queries = evaluate_embeddings(ROWS.to(cuda), CLASSES.to(cuda), queries=ROWS[:50], query_labels=CLASSES[:50])
    assert of_queries.recall_at[1] == 1
    found = evaluate(build(cuda), IMAGES, LABELS)
    assert found.recall_at == pytest.approx(evaluate(build(), IMAGES, LABELS).recall_at)


@pytest.mark.parametrize("k", [2, 20, 150])
def test_clusters_are_as_compact_as_those_on_the_cpu(gpu, k):
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
        {"warm_start": False},
        {"average_neighbors": 3, "unassigned_fraction": 0.1, "coarse": True},
        {"n_clusters": None, "clusterer": KMeans(8)},
    ],
)
def test_a_labeler_clusters_on_the_gpu_and_returns_labels_on_the_cpu(gpu, settings):
    labeler = ClusterPseudoLabeler(**({"n_clusters": 8} | settings), device=gpu)
    for rows in (ROWS, ROWS.to(gpu) + 0.1):
        pseudo = labeler.label(rows)
    assert pseudo.labels.device.type == pseudo.centers.device.type == "cpu"
    assert pseudo.agreement is not None
    assert len(list(PseudoLabelSampler(pseudo.labels.to(gpu), 4, 4, n_batches=2))) == 2


def test_label_free_scores_equal_those_on_the_cpu(gpu):
    indices = torch.arange(0, 300, 3)
    views = ROWS[indices] + 0.5 * torch.randn(100, 16)
    expected = vars(label_free_scores(ROWS, views, indices))
    for devices in [(gpu, "cpu", "cpu"), (gpu, gpu, gpu), ("cpu", gpu, gpu)]:
        found = label_free_scores(ROWS.to(devices[0]), views.to(devices[1]), indices.to(devices[2]))
        assert vars(found) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fraction", [1 / 8, 0])
def test_searches_on_the_gpu_whole_or_in_parts_equal_those_on_the_cpu(gpu, monkeypatch, fraction):
    monkeypatch.setattr(_chunks, "_MEMORY_FRACTION", fraction)
    rows = ROWS.to(_chunks.storage_device(ROWS.shape, gpu))
    assert rows.device.type == (gpu.type if fraction else "cpu")
    with search_on(gpu):
        assert torch.equal(nearest(rows, 5)[1].cpu(), nearest(ROWS, 5)[1])
        assert torch.equal(k_means(rows, 9, start=ROWS[:9]), k_means(ROWS, 9, start=ROWS[:9]))
    found, expected = (SearchIndex(ROWS, device=device).search(ROWS[:20], 5)[0] for device in (gpu, "cpu"))
    assert (found == expected).all()


@pytest.mark.parametrize("output", ["embeddings", "features"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_embeddings_are_returned_on_the_cpu_and_equal_those_computed_there(gpu, output, memory_format):
    found = embed(build(gpu).to(memory_format=memory_format), IMAGES, batch_size=20, output=output)
    assert found.device.type == "cpu"
    assert_near(found, embed(build(), IMAGES, batch_size=20, output=output))


def test_neighbor_pairs_and_initial_embedders_are_computed_on_the_gpu(gpu):
    rows = ROWS.to(gpu)
    assert torch.equal(pair_with_neighbors(rows, fraction=1).cpu(), pair_with_neighbors(ROWS, fraction=1))
    assert embedder_from_features(rows, 4)(rows).shape == (300, 4)


METRIC_LOSSES = {
    "multi-similarity": lambda: UDMLSSLoss(losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner()),
    "supervised contrastive": lambda: UDMLSSLoss(losses.SupConLoss()),
    "proxies": lambda: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8)),
    "memory": lambda: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 64)),
    **{name: lambda make=make: UDMLSSLoss(make()) for name, make in DEEP_METRIC_LOSSES.items()},
}


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_metric_losses_and_their_gradients_equal_those_on_the_cpu(gpu, name):
    found = []
    for device in ("cpu", gpu):
        torch.manual_seed(0)
        criterion, rows = METRIC_LOSSES[name]().to(device), ROWS[:24, :8].to(device).requires_grad_()
        loss = criterion(rows, LABELS[:24])
        loss.backward()
        found.append((loss.detach(), rows.grad))
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert_near(on_gpu, on_cpu)


def center_softmax(device):
    views = ROWS[:24, :8].to(device)
    return CenterSoftmaxLoss()(views, views + 0.1, LABELS[:24], ROWS[:6, :8].to(device))


def stml(device):
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


@pytest.mark.parametrize("loss", [center_softmax, stml, self_supervised_ranking, synthesis_ranking, cbswr])
def test_other_losses_run_on_the_gpu(gpu, loss):
    torch.manual_seed(0)
    found = loss(gpu)
    assert found.device.type == gpu.type
    assert torch.isfinite(found.detach().cpu())


class Noisy(torch.utils.data.Dataset):
    """Images with new noise each time that they are loaded."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index] + 0.2 * torch.randn(3, 12, 12)


def short_fit(device, *callbacks, weights_seed=0, memory_format=torch.contiguous_format, **changes):
    """Train for five steps, and return the modules and the result; changes that are functions receive the device."""
    model = build(device, weights_seed).to(memory_format=memory_format)
    settings = {
        "labeler": ClusterPseudoLabeler(6),
        "criterion": UDMLSSLoss(losses.MultiSimilarityLoss()),
        "rotation_head": RotationPretextHead(32, max_images=4),
        "clusters_per_batch": 4,
        "samples_per_cluster": 3,
        "max_steps": 5,
        "relabel_every": 2,
        "freeze_batch_norm": False,
        "progress": False,
    }
    settings |= {name: change(device) if isfunction(change) else change for name, change in changes.items()}
    callbacks = [*settings.pop("callbacks", ()), *callbacks]
    result = fit(model, Noisy(), **settings, callbacks=callbacks)
    modules = [model, settings["criterion"], settings["rotation_head"], settings.get("auxiliary")]
    return [module for module in modules if module is not None], result


SETTINGS = {
    "plain": {},
    "no rotation, frozen batch norm": {"rotation_head": None, "freeze_batch_norm": True},
    "averages": {
        "callbacks": lambda _: [WeightAverage(0.9)],
        "views": 2,
        "clip_norm": 1.0,
        "memory_format": torch.channels_last,
    },
    "bfloat16": {"precision": "bfloat16"},
    "best weights": {"callbacks": lambda _: [BestWeights(), EarlyStopping(patience=5)]},
    "features": {"cluster_on": "features", "cluster_images": IMAGES},
    "proxies": {"criterion": lambda _: UDMLSSLoss(losses.ProxyAnchorLoss(6, 8))},
    "memory": {"criterion": lambda _: UDMLSSLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 64))},
    "auxiliary": {"auxiliary": lambda _: SelfSupervisedRanking(32)},
    "clusters on the GPU": {"labeler": lambda gpu: ClusterPseudoLabeler(6, device=gpu)},
    "neighbors": {"labeler": lambda _: ClusterPseudoLabeler(6, average_neighbors=3)},
    "communities": {"labeler": lambda _: ClusterPseudoLabeler(), "clusters_per_batch": None},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_fit_on_the_gpu_equals_fit_on_the_cpu(gpu, name):
    modules, result = short_fit(gpu, **SETTINGS[name])
    assert len(result.history) == 3
    assert all(value.device.type == gpu.type for module in modules for value in module.state_dict().values())
    if gpu.type == "lazy" and name != "bfloat16":  # computes on the CPU, but not in mixed precision
        expected, _ = short_fit("cpu", **SETTINGS[name])
        for on_gpu, on_cpu in zip(modules[0].parameters(), expected[0].parameters(), strict=True):
            torch.testing.assert_close(on_gpu.detach().cpu(), on_cpu.detach())


def test_losses_on_the_gpu_are_those_on_the_cpu(gpu):
    settings = {"rotation_head": None, "freeze_batch_norm": True, "labeler": lambda _: lambda rows: LABELS[: len(rows)]}
    on_gpu, on_cpu = ([report.loss for report in short_fit(each, **settings)[1].history] for each in (gpu, "cpu"))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


@pytest.mark.parametrize("name", ["plain", "averages", "best weights", "proxies", "memory", "auxiliary"])
def test_a_run_that_is_resumed_on_the_gpu_equals_the_uninterrupted_one(gpu, tmp_path, name):
    whole, _ = short_fit(gpu, Checkpoint(tmp_path, every=3, keep_last=9), **SETTINGS[name])
    (tmp_path / "step-000000005.pt").unlink()
    resumed, _ = short_fit(gpu, Checkpoint(tmp_path, resume=True), weights_seed=1, **SETTINGS[name])
    for module, expected in zip(resumed, whole, strict=True):
        for name_, value in expected.state_dict().items():
            assert_near(module.state_dict()[name_], value)
