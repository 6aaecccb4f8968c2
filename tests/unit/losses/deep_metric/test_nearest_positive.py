"""NearestPositiveLoss; test_deep_metric.py has its definition and the properties of all losses."""

import pytest
import torch
from torch.nn import functional

from udmlss.losses import NearestPositiveLoss


def test_only_the_closest_positive_receives_a_gradient():
    degrees = torch.tensor([0.0, 20, 90, -10]).deg2rad()
    embeddings = torch.stack([degrees.cos(), degrees.sin()], dim=1).requires_grad_()
    loss = NearestPositiveLoss()(embeddings, torch.tensor([0, 0, 0, 1]))
    [gradient] = torch.autograd.grad(loss, embeddings)
    assert gradient[[0, 1, 3]].any(dim=1).all()
    assert not gradient[2].any()


def test_negatives_beyond_the_margin_receive_no_gradient():
    embeddings = functional.normalize(torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])).requires_grad_()
    loss = NearestPositiveLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss == 0
    assert not embeddings.grad.any()


def test_rejects_missing_labels():
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\)"):
        NearestPositiveLoss()(torch.eye(4), [0, 0, 1])


def test_rejects_embeddings_that_are_not_finite():
    with pytest.raises(ValueError, match="`embeddings` must be finite, got 4 of 4 rows with NaN"):
        NearestPositiveLoss()(torch.full((4, 2), torch.nan), [0, 0, 1, 1])
