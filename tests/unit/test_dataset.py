from collections import OrderedDict, namedtuple

import jaxtyping
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from udmlss.dataset import IndexedImages, SeededBatches, has_other_fields, stack_images

Sample = namedtuple("Sample", "image label path")  # noqa: PYI024 (the plain one, as people have it)

IMAGES = torch.rand(5, 3, 4, 4)
ITEMS = {
    "tensor": lambda image: image,
    "tuple": lambda image: (image, 7),
    "tuple of one": lambda image: (image,),
    "list": lambda image: [image, "label", None],
    "namedtuple": lambda image: Sample(image, 7, "a.jpg"),
    "dict": lambda image: {"image": image, "label": 7},
    "ordered dict": lambda image: OrderedDict(pixels=image, label=object()),
}
BAD = {
    "PIL image": (Image.new("RGB", (4, 4)), "Image"),
    "PIL image in a tuple": ((Image.new("RGB", (4, 4)), 3), "Image"),
    "uint8": (torch.zeros(3, 4, 4, dtype=torch.uint8), r"a uint8 tensor of shape \(3, 4, 4\)"),
    "matrix": (torch.zeros(4, 4), r"a float32 tensor of shape \(4, 4\)"),
    "batch": (torch.zeros(1, 3, 4, 4), r"a float32 tensor of shape \(1, 3, 4, 4\)"),
    "numpy": (torch.zeros(3, 4, 4).numpy(), "ndarray"),
    "label first": ((3, torch.zeros(3, 4, 4)), "int"),
    "path": ("a.jpg", "str"),
    "None": (None, "NoneType"),
    "empty tuple": ((), "NoneType"),
    "empty dict": ({}, "NoneType"),
}


class Made(Dataset):
    """Items made by a function of their index."""

    def __init__(self, make, n=5):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.make(index)


def fail_at_three(index):
    if index == 3:
        raise OSError("image file is truncated")
    return IMAGES[index]


@pytest.fixture
def untyped(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("wrap", ITEMS.values(), ids=ITEMS)
def test_the_image_and_its_index_are_taken_and_the_rest_left(wrap):
    data = IndexedImages(Made(lambda index: wrap(IMAGES[index])))
    assert len(data) == 5
    for expected in range(5):
        image, index = data[expected]
        assert torch.equal(image, IMAGES[expected])
        assert index == expected


@pytest.mark.parametrize(
    "images", [IMAGES, list(IMAGES), TensorDataset(IMAGES), TensorDataset(IMAGES, torch.arange(5))]
)
def test_whatever_has_a_length_and_items_is_a_data_set(images):
    data = IndexedImages(images)
    assert len(data) == 5
    assert torch.equal(data[4][0], IMAGES[4])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 4, 2]])
def test_a_loader_gives_batches_with_the_indices_of_their_images(num_workers, order):
    loader = DataLoader(
        IndexedImages(TensorDataset(IMAGES, torch.arange(5))),
        batch_size=2,
        sampler=order,
        num_workers=num_workers,
        collate_fn=stack_images,
    )
    images, indices = zip(*loader, strict=True)
    assert torch.cat(indices).tolist() == order
    assert torch.cat(indices).dtype == torch.int64
    assert torch.equal(torch.cat(images), IMAGES[order])


@pytest.mark.parametrize(("item", "found"), BAD.values(), ids=BAD)
def test_an_item_that_holds_no_image_tensor_is_refused_with_its_number(item, found):
    data = IndexedImages(Made(lambda index: item if index == 3 else IMAGES[index]))
    data[2]
    with pytest.raises(
        TypeError, match=rf"floating-point image tensor \(c h w\), got {found} in item 3\. .* float tensor, such as"
    ):
        data[3]


@pytest.mark.parametrize("images", [[], IMAGES[:0], Made(IMAGES.__getitem__, 0)])
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match=r"`images` must hold at least one image, got none\. Look at the folder"):
        IndexedImages(images)


def test_images_of_different_shapes_are_refused_with_their_numbers(untyped):
    items = [(torch.zeros(3, 4, 4), 7), (torch.zeros(3, 4, 4), 2), (torch.zeros(3, 4, 5), 9)]
    with pytest.raises(
        ValueError,
        match=r"must have one shape, got \(3, 4, 4\) in item 7 and \(3, 4, 5\) in item 9\. Resize and crop",
    ):
        stack_images(items)


def test_images_of_different_shapes_are_refused_with_the_types_enforced_too():
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) in item 0 and \(1, 4, 4\) in item 1"):
        stack_images([(torch.zeros(3, 4, 4), 0), (torch.zeros(1, 4, 4), 1)])


def test_an_error_of_the_data_set_carries_the_number_of_the_item():
    data = IndexedImages(Made(fail_at_three))
    with pytest.raises(OSError, match="image file is truncated") as caught:
        data[3]
    assert caught.value.args == ("image file is truncated",)
    assert caught.value.__notes__ == ["while taking item 3 of `images`"]


def test_an_error_in_a_worker_carries_the_number_of_the_item():
    loader = DataLoader(IndexedImages(Made(fail_at_three)), batch_size=5, num_workers=1, collate_fn=stack_images)
    with pytest.raises(OSError, match=r"image file is truncated\n(.*\n)*while taking item 3 of `images`"):
        next(iter(loader))


@pytest.mark.parametrize("kind", ITEMS)
def test_items_carry_more_if_there_is_anything_beside_the_image(kind):
    assert has_other_fields(Made(lambda index: ITEMS[kind](IMAGES[index]))) == (kind not in {"tensor", "tuple of one"})


def test_looking_at_an_item_leaves_the_draws_as_they_were():
    before = torch.get_rng_state()
    has_other_fields(Made(lambda _: torch.rand(3, 4, 4)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_drawn_alike_in_whatever_order_and_process(workers):
    noisy = Made(lambda index: IMAGES[index] + torch.rand(()))
    data = SeededBatches(noisy, [[0, 1], [2, 2], [3, 4]], (7, 1))
    loader = DataLoader(data, batch_size=None, sampler=[2, 0, 1], num_workers=workers)
    found = {tuple(index.tolist()): images for images, index in loader}
    for number, batch in enumerate([(0, 1), (2, 2), (3, 4)]):
        images, index = data[number]
        assert tuple(index.tolist()) == batch
        assert torch.equal(images, found[batch])
    assert not torch.equal(*found[2, 2])


def test_another_key_draws_other_batches():
    noisy = Made(lambda index: IMAGES[index] + torch.rand(()))
    one, other = (SeededBatches(noisy, [[0, 1]], (key,))[0][0] for key in (0, 1))
    assert not torch.equal(one, other)
