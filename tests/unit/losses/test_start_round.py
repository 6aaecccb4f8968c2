"""UDMLSSLoss.start_round with every loss of pytorch-metric-learning."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from pml_losses import LOSSES, PROXY_LOSSES, D, K, make, pair_loss
from pytorch_metric_learning import losses
from torch import nn
from torch.nn import functional

from udmlss import PseudoLabels, UDMLSSLoss

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # HistogramLoss

WRAPPERS = {"alone": lambda loss: loss, "nested": lambda loss: losses.MultipleLosses([pair_loss(), loss])}


def separated_clusters():
    """Return unit embeddings close to K random orthogonal directions, and their pseudo-labels."""
    labels = torch.arange(K).repeat_interleave(4)
    directions = torch.linalg.qr(torch.randn(D, D)).Q[:K]
    embeddings = functional.normalize(directions[labels] + 0.02 * torch.randn(len(labels), D))
    return embeddings, PseudoLabels.from_labels(labels, embeddings)


def without_centers(n_clusters=K):
    return PseudoLabels.from_labels(torch.arange(n_clusters).repeat(2))


def with_centers(n_clusters, dimension=D):
    return PseudoLabels.from_labels(torch.arange(n_clusters).repeat(2), torch.randn(2 * n_clusters, dimension))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_trains_its_own_parameters_after_a_new_round(name):
    embeddings, pseudo_labels = separated_clusters()
    criterion = UDMLSSLoss(make(name))
    criterion(embeddings, pseudo_labels.labels)
    parameters = list(criterion.parameters())
    criterion.start_round(pseudo_labels)
    loss = criterion(embeddings.requires_grad_(), pseudo_labels.labels)
    loss.backward()
    assert loss.isfinite()
    assert all(before is after for before, after in zip(parameters, criterion.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad.isfinite().all() for parameter in criterion.parameters())


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_loss_is_lowest_for_the_clusters_of_the_round(name):
    embeddings, pseudo_labels = separated_clusters()
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo_labels)
    value, *others = [criterion(embeddings, (pseudo_labels.labels + shift) % K).item() for shift in range(K)]
    assert value < min(others)


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_proxies_follow_another_number_of_clusters(name):
    for wrap in WRAPPERS.values():
        criterion = UDMLSSLoss(wrap(make(name)) if name != "ManifoldLoss" else make(name))
        optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
        for k in (7, 3):
            pseudo_labels = with_centers(k)
            criterion.start_round(pseudo_labels, optimizer)
            equal = UDMLSSLoss(wrap(make(name)) if name != "ManifoldLoss" else make(name))
            equal.load_state_dict(criterion.state_dict())
            rows = functional.normalize(torch.randn(2 * k, D))
            value = criterion(rows, pseudo_labels.labels)
            assert value.isfinite()
            assert equal(rows, pseudo_labels.labels) == value


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_trained_proxies_need_the_optimizer_to_change_their_number(name):
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(with_centers(7))
    optimizer = torch.optim.AdamW(criterion.parameters(), fused=True)  # it does not count the changes of a tensor

    def train(k):
        criterion(functional.normalize(torch.randn(2 * k, D)), with_centers(k).labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    train(7)
    criterion.start_round(with_centers(7))
    copied = deepcopy(criterion)
    for each in (criterion, copied):
        with pytest.raises(ValueError, match=rf"{name} needs `optimizer` to change from 7 to 5 clusters, got None"):
            each.start_round(with_centers(5))
    criterion.start_round(with_centers(5), optimizer)
    train(5)


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_the_state_of_an_optimizer_that_belongs_to_other_proxies_is_removed(name):
    criterion, other = UDMLSSLoss(make(name)), UDMLSSLoss(make(name))
    optimizer = torch.optim.Adam(criterion.parameters())
    other.start_round(with_centers(8))
    criterion(functional.normalize(torch.randn(2 * K, D)), with_centers(K).labels).backward()
    optimizer.step()
    criterion.load_state_dict(other.state_dict())
    criterion.start_round(with_centers(9), optimizer)
    criterion(functional.normalize(torch.randn(18, D)), with_centers(9).labels).backward()
    optimizer.step()
    for parameter in criterion.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_a_label_without_a_proxy_is_an_error(name):
    criterion = UDMLSSLoss(make(name))
    message = rf"`labels` must lie in 0\.\.{K - 1}, one class of {name} for each, or be -1, got {K}\. Call `start_round"
    with pytest.raises(ValueError, match=message):
        criterion(torch.randn(2 * K + 2, D), torch.arange(K + 1).repeat(2))


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_rejects_embeddings_of_another_dimension(name):
    with pytest.raises(ValueError, match=rf"{name} was built for embeddings of 6 dimensions, got 7\. Build it with"):
        UDMLSSLoss(make(name)).start_round(with_centers(K, dimension=7))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*PROXY_LOSSES, "MarginLoss")])
def test_losses_without_proxies_accept_any_number_of_clusters(name):
    pseudo_labels = with_centers(5)
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo_labels)
    assert criterion(functional.normalize(torch.randn(10, D)), pseudo_labels.labels).isfinite()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("centers", [True, False])
def test_empties_cross_batch_memory(wrap, centers):
    embeddings, pseudo_labels = separated_clusters()
    memory = make("CrossBatchMemory")
    criterion = UDMLSSLoss(wrap(memory))
    first = criterion(embeddings, pseudo_labels.labels)
    assert memory.queue_idx == len(embeddings)
    assert criterion(embeddings, pseudo_labels.labels) != first
    criterion.start_round(pseudo_labels if centers else without_centers())
    assert memory.queue_idx == 0
    assert not memory.has_been_filled
    assert not memory.embedding_memory.any()
    assert criterion(embeddings, pseudo_labels.labels) == first


def test_does_not_move_proxies_without_centers():
    criterion = UDMLSSLoss(make("ProxyAnchorLoss"))
    before = criterion.metric_loss.proxies.clone()
    criterion.start_round(without_centers())
    assert torch.equal(criterion.metric_loss.proxies, before)


def test_moves_proxies_of_nested_losses():
    _, pseudo_labels = separated_clusters()
    inner = [make("ProxyAnchorLoss"), losses.MultipleLosses([make("NormalizedSoftmaxLoss")])]
    UDMLSSLoss(losses.MultipleLosses(inner)).start_round(pseudo_labels)
    expected = functional.normalize(pseudo_labels.centers - pseudo_labels.centers.mean(dim=0))
    torch.testing.assert_close(functional.normalize(inner[0].proxies), expected)
    torch.testing.assert_close(functional.normalize(inner[1].losses[0].W.T), expected)


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_a_translation_of_all_centers_does_not_move_proxies(name):
    _, pseudo_labels = separated_clusters()
    criterion = UDMLSSLoss(make(name))
    criterion.start_round(pseudo_labels)
    before = [parameter.clone() for parameter in criterion.parameters()]
    criterion.start_round(replace(pseudo_labels, centers=pseudo_labels.centers + 5 * torch.ones(D)))
    for parameter, old in zip(criterion.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=1e-4, atol=1e-4)


class CustomModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(9, 3))
        self.centers = None

    def forward(self, embeddings, labels):
        return embeddings.sum() + self.proxies.sum()

    def set_centers(self, centers):
        self.centers = centers


class CustomLoss(losses.ContrastiveLoss):
    def __init__(self):
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(9, 3))


@pytest.mark.parametrize("build", [CustomModule, CustomLoss])
def test_does_not_change_parameters_of_a_custom_loss(build):
    criterion = UDMLSSLoss(build())
    before = criterion.metric_loss.proxies.clone()
    criterion.start_round(with_centers(K))
    assert torch.equal(criterion.metric_loss.proxies, before)


def test_a_custom_module_receives_the_centers():
    criterion, pseudo_labels = UDMLSSLoss(CustomModule()), with_centers(K)
    criterion.start_round(pseudo_labels)
    assert criterion.metric_loss.centers is pseudo_labels.centers


def test_a_new_round_does_not_change_a_callable():
    criterion, (embeddings, pseudo_labels) = UDMLSSLoss(lambda rows, _labels: rows.sum()), separated_clusters()
    before = criterion(embeddings, pseudo_labels.labels)
    criterion.start_round(pseudo_labels)
    assert criterion(embeddings, pseudo_labels.labels) == before
