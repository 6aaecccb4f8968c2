"""Datasets of the package `datasets` are images as they are, with a transform."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from udmlss import Checkpoint, EmbeddingModel, IndexedImages, embed, fit

N = 24
to_tensor = v2.Compose([v2.RGB(), v2.CenterCrop(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture
def make_dataset():
    """Return a function that makes a dataset with encoded images in one column and labels in another."""

    def make(column):
        pixels = np.random.default_rng(0).integers(0, 256, (N, 12, 10, 3), dtype=np.uint8)
        features = datasets.Features({"label": datasets.Value("int64"), column: datasets.Image()})
        rows = {"label": range(N), column: [*map(Image.fromarray, pixels)]}
        return datasets.Dataset.from_dict(rows, features=features)

    return make


def transformed(column):
    return lambda batch: {**batch, column: [to_tensor(image) for image in batch[column]]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fit_and_embed_take_a_dataset_with_a_transform(make_dataset, num_workers):
    photos = make_dataset("image")
    images = photos.with_transform(transformed("image"))
    model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 4))
    fit(model, images, max_steps=2, num_workers=num_workers)
    expected = model(torch.stack([to_tensor(photo) for photo in photos["image"]]))
    assert torch.allclose(embed(model, images, num_workers=num_workers), expected, atol=1e-6)


@pytest.mark.parametrize(
    "reorder", [lambda photos: photos.shuffle(seed=1), lambda photos: photos.select([1, 0, *range(2, N)])]
)
def test_a_run_is_not_resumed_with_the_images_in_another_order(make_dataset, reorder, tmp_path):
    """The transform is random, so that the images themselves do not show the order."""

    def train(photos, max_steps):
        images = photos.with_transform(lambda _: {"image": [torch.rand(3, 8, 8)]})
        model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 4))
        return fit(model, images, max_steps=max_steps, callbacks=Checkpoint(tmp_path, resume=True))

    photos = make_dataset("image")
    train(reorder(photos), 1)
    for other in (photos, photos.shuffle(seed=2)):
        with pytest.raises(ValueError, match=r"must be of the same run, got checksum of images\._indices"):
            train(other, 2)
    assert train(reorder(make_dataset("image")), 2).history[-1].step == 2


def test_the_image_may_have_another_key(make_dataset):
    images = IndexedImages(make_dataset("photo").with_transform(transformed("photo")), image_key="photo")
    assert images[3][0].shape == (3, 8, 8)


def test_a_dataset_without_a_transform_is_an_error_with_the_remedy(make_dataset):
    with pytest.raises(TypeError, match=r"got a dictionary of .*'image': PngImageFile.* Give the dataset a transform"):
        IndexedImages(make_dataset("image"))[0]
