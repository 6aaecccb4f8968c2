"""BatchNormNeck, alone and in a training that freezes the trunk's batch normalization."""

import torch
from short_training import criterion, make_pretrained_model, short_fit
from torch import nn

from udmlss import EmbeddingModel
from udmlss.models import BatchNormNeck


def test_columns_are_normalized_and_scaled_without_a_shift():
    neck, rows = BatchNormNeck(5), 3 * torch.randn(40, 5) + 7
    neck.weight.data.uniform_(1, 2)
    expected = (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + neck.eps).sqrt() * neck.weight
    torch.testing.assert_close(neck(rows), expected)
    assert [name for name, parameter in neck.named_parameters() if parameter.requires_grad] == ["weight"]
    assert not neck.bias.any()


def test_a_new_neck_is_trained_where_the_batch_norm_of_the_trunk_is_frozen():
    pretrained, neck = make_pretrained_model(), BatchNormNeck(16)
    model = EmbeddingModel(pretrained.trunk, nn.Sequential(pretrained.embedder, neck))
    frozen = [buffer.clone() for buffer in model.trunk.buffers()]
    assert frozen
    short_fit(model, criterion=criterion(), freeze_batch_norm=True)
    assert all(map(torch.equal, frozen, model.trunk.buffers()))
    assert neck.num_batches_tracked == 6
    assert not torch.equal(neck.weight, torch.ones(16))
    assert not neck.bias.any()
    assert neck.running_mean.all()
