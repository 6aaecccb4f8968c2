"""A sheet of clusters shows images of one cluster in each row, from the largest to the smallest cluster."""

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from udmlss import EmbeddingModel, Rounds
from udmlss.training.callbacks.loggers.cluster_sheet import cluster_sheet

LABELS = torch.tensor([2] * 5 + [0] * 12 + [-1] * 3 + [1] * 3 + [3] * 9)


def sheet_of(images, n_clusters):
    rounds = Rounds(EmbeddingModel(nn.Flatten(), nn.Linear(images[0].numel(), 4)), images)
    return cluster_sheet(rounds, LABELS, n_clusters)


def tiles_of(sheet):
    """Return the thumbnails of each row as images (3, 8, 8) in 0..255, without the white ones."""
    rows = sheet.permute(2, 0, 1).float().unflatten(1, (-1, 98)).unflatten(3, (8, 98))
    tiles = rows.permute(1, 3, 0, 2, 4)[:, :, :, :96, :96]
    return [[adaptive_avg_pool2d(tile, 8) for tile in row if tile.min() < 255] for row in tiles]


def test_each_row_has_images_of_one_cluster():
    images = torch.rand(len(LABELS), 3, 8, 8)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = ((images - low) / (high - low)).flatten(1)
    sheet = sheet_of(2 * images - 5, 3)
    found = [
        LABELS[[int((scaled - tile.flatten() / 255).abs().sum(dim=1).argmin()) for tile in row]].tolist()
        for row in tiles_of(sheet)
    ]
    assert found in ([[0] * 8, [3] * 8, [1] * 3], [[0] * 8, [2] * 5, [1] * 3])
    assert torch.equal(sheet, sheet_of(2 * images - 5, 3))


def test_all_clusters_are_shown_if_there_are_fewer_and_gray_and_wide_images_are_accepted():
    sheet = sheet_of(torch.rand(len(LABELS), 1, 4, 8), 9)
    assert sheet.shape == (4 * 98, 8 * (192 + 2), 3)
    assert torch.equal(sheet[..., 0], sheet[..., 2])
    constant = sheet_of(torch.ones(len(LABELS), 2, 8, 8), 1)
    assert set(constant.unique().tolist()) == {0, 255}
