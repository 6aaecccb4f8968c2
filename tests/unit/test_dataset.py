from collections import OrderedDict, UserDict, namedtuple

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from udmlss.dataset import IndexedImages, stack_images

Sample = namedtuple("Sample", "image label path")  # noqa: PYI024 (the untyped kind is widely used)

IMAGES = torch.rand(5, 3, 4, 4)
PIL_IMAGE = Image.new("RGB", (4, 4))
ITEMS = {
    "tensor": lambda image: image,
    "tuple": lambda image: (image, 7),
    "tuple of one": lambda image: (image,),
    "list": lambda image: [image, "label", None],
    "namedtuple": lambda image: Sample(image, 7, "a.jpg"),
    "dictionary": lambda image: {"label": 7, "image": image},
    "pixel_values": lambda image: UserDict(label=torch.tensor(7), pixel_values=image),
    "two known keys": lambda image: {"image": PIL_IMAGE, "pixel_values": image},
    "first value": lambda image: OrderedDict(pixels=image, label=object()),
}
REJECTED = {
    "PIL image": (PIL_IMAGE, "Image"),
    "PIL image in a tuple": ((PIL_IMAGE, 3), "a tuple of Image, int"),
    "uint8": (torch.zeros(3, 4, 4, dtype=torch.uint8), r"a uint8 tensor of shape \(3, 4, 4\)"),
    "matrix": (torch.zeros(4, 4), r"a float32 tensor of shape \(4, 4\)"),
    "batch": (torch.zeros(2, 3, 4, 4), r"a float32 tensor of shape \(2, 3, 4, 4\)"),
    "NumPy array": (torch.zeros(3, 4, 4).numpy(), "ndarray"),
    "label first": ((3, torch.zeros(3, 4, 4)), "a tuple of int, a float32 tensor"),
    "path": ("a.jpg", "str"),
    "None": (None, "NoneType"),
    "empty tuple": ((), "a tuple of nothing"),
    "empty dictionary": ({}, "a dictionary of nothing"),
    "unknown key": ({"label": 3, "photo": torch.zeros(3, 4, 4)}, "a dictionary of 'label': int, 'photo': a float32"),
    "no tensor under a known key": ({"x": torch.zeros(3, 4, 4), "image": PIL_IMAGE}, ".*'image': Image"),
}


class FromFunction(Dataset):
    """Items computed by a function of their index."""

    def __init__(self, function, n=5):
        self.function, self.n = function, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.function(index)


class Strict:
    """A dataset of dictionaries that, like some of other libraries, accepts no integers but those of Python."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if type(index) is not int:
            raise TypeError(f"wrong index type {type(index).__name__}")
        return {"label": index, "photo": IMAGES[index]}


def fail_at_three(index):
    if index == 3:
        raise OSError("image file is truncated")
    return IMAGES[index]


@pytest.fixture
def without_shape_checks(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("wrap", ITEMS.values(), ids=ITEMS)
def test_returns_the_image_of_an_item_and_its_index(wrap):
    data = IndexedImages(FromFunction(lambda index: wrap(IMAGES[index])))
    assert len(data) == 5
    for expected in range(5):
        image, index = data[expected]
        assert torch.equal(image, IMAGES[expected])
        assert index == expected


@pytest.mark.parametrize("images", [IMAGES, list(IMAGES), TensorDataset(IMAGES, torch.arange(5))])
def test_accepts_anything_with_a_length_and_items(images):
    data = IndexedImages(images)
    assert len(data) == 5
    assert torch.equal(data[4][0], IMAGES[4])


@pytest.mark.parametrize("index", [4, np.int64(4)])
def test_a_named_key_and_a_dataset_that_is_strict_about_indices(index):
    image, found = IndexedImages(Strict(), image_key="photo")[index]
    assert torch.equal(image, IMAGES[4])
    assert (found, type(found)) == (4, int)


CONTAINERS = [list, tuple, np.array, torch.tensor, lambda indices: torch.tensor(indices).int()]


@pytest.mark.parametrize("convert", CONTAINERS)
def test_dataset_in_subsets_and_concatenations_gets_indices_of_python(convert):
    part = Subset(Strict(), convert([4, 2, 0]))
    both = ConcatDataset([part, Strict(), ConcatDataset([Subset(part, convert([1, 2]))])])
    for images, expected in {
        part: [4, 2, 0],
        Subset(part, convert([0, 1])): [4, 2],
        both: [4, 2, 0, 0, 1, 2, 3, 4, 2, 0],
        Subset(both, convert([9, 8, 1])): [0, 2, 2],
    }.items():
        indexed = IndexedImages(images, image_key="photo")
        for number, item in enumerate(expected):
            image, index = indexed[np.int64(number)]
            assert torch.equal(image, IMAGES[item])
            assert (index, type(index)) == (number, int)
            assert torch.equal(indexed[number - len(expected)][0], IMAGES[item])
        with pytest.raises(IndexError):
            indexed[len(expected)]


@pytest.mark.parametrize("convert", CONTAINERS)
def test_a_data_loader_of_a_subset_of_indexed_images(convert):
    images = Subset(IndexedImages(Strict(), image_key="photo"), convert([4, 2, 0]))
    loaded, indices = next(iter(DataLoader(images, batch_size=3, collate_fn=stack_images)))
    assert torch.equal(loaded, IMAGES[[4, 2, 0]])
    assert indices.tolist() == [4, 2, 0]


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: ConcatDataset([IMAGES, part])])
def test_a_mask_as_indices_of_a_subset_is_an_error(convert, wrap):
    images = wrap(Subset(IMAGES, convert([False, True, True, False, True])))
    with pytest.raises(TypeError, match=r"`Subset` must have indices, got a mask of booleans\. Pass the indices"):
        IndexedImages(images)


class Shuffled(Subset):
    def __getitem__(self, index):
        return self.dataset[self.indices[index]] + 1

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_subclass_of_subset_keeps_its_own_items():
    assert torch.equal(IndexedImages(Shuffled(IMAGES, [4]))[0][0], IMAGES[4] + 1)


class Iterable(IterableDataset):
    def __len__(self):
        return 5

    def __iter__(self):
        return iter(IMAGES)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("images", "name"), [(Iterable(), "Iterable"), (iter(IMAGES), "iterator"), ({0, 1}, "set"), ("photos", "str")]
)
def test_rejects_a_dataset_that_is_not_map_style(images, name):
    message = rf"`images` must be a map-style dataset, with `__len__` and `__getitem__`, got .*{name}\. Load its items"
    with pytest.raises(TypeError, match=message):
        IndexedImages(images)


def test_wrapping_twice_equals_wrapping_once():
    once = IndexedImages(Strict(), image_key="photo")
    twice = IndexedImages(once)
    assert (twice.images, twice.image_key) == (once.images, "photo")
    assert torch.equal(twice[4][0], IMAGES[4])
    with pytest.raises(TypeError, match="in item 0") as caught:
        IndexedImages(once, image_key="picture")[0]
    assert caught.value.__notes__ == ["while loading item 0 of `images`"]


class Shifted(IndexedImages):
    def __getitem__(self, index):
        image, index = super().__getitem__(index)
        return image + 1, index


def test_a_subclass_keeps_its_own_items():
    assert torch.equal(IndexedImages(Shifted(IMAGES))[2][0], IMAGES[2] + 1)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 4, 2]])
def test_a_loader_returns_batches_with_the_indices_of_their_images(num_workers, order):
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


@pytest.mark.parametrize(("item", "found"), REJECTED.values(), ids=REJECTED)
def test_rejects_an_item_without_an_image_tensor(item, found):
    data = IndexedImages(FromFunction(lambda index: item if index == 3 else IMAGES[index]))
    data[2]
    rule = r"An item of `images` must be or contain a floating-point image tensor \(c, h, w\)"
    with pytest.raises(TypeError, match=rf"{rule}, got {found}.* in item 3\. .* float tensor, such as"):
        data[3]


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ({"label": 3, "image": torch.zeros(3, 4, 4)}, "a dictionary of 'label': int, 'image': a float32 tensor.*"),
        ((torch.zeros(3, 4, 4), 3), "a tuple of a float32 tensor of .*, int"),
        ({"photo": PIL_IMAGE}, "a dictionary of 'photo': Image"),
    ],
)
def test_rejects_an_item_without_an_image_under_the_named_key(item, found):
    with pytest.raises(TypeError, match=rf"under the key 'photo', got {found} in item 0\. "):
        IndexedImages([item], image_key="photo")[0]


def test_an_error_about_a_dictionary_names_the_remedy_and_at_most_eight_fields():
    with pytest.raises(TypeError, match=r"IndexedImages\(images, image_key=\.\.\.\)\.") as caught:
        IndexedImages([{f"field {number}": number for number in range(100)}])[0]
    assert str(caught.value).count("field") == 8


class BatchFeature(UserDict):
    """The result of an image processor of Hugging Face, whose fields are attributes as well."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError from None


@pytest.mark.parametrize("wrap", [lambda image: image, lambda image: BatchFeature(pixel_values=image)])
def test_an_image_processor_may_return_one_image(wrap):
    assert torch.equal(IndexedImages([wrap(IMAGES[3])])[0][0], IMAGES[3])


@pytest.mark.parametrize("pixels", [[np.zeros((3, 4, 4))], np.zeros((1, 3, 4, 4), np.float32)])
def test_an_error_about_arrays_of_an_image_processor_names_the_remedy(pixels):
    remedy = r'Return one tensor: `processor\(image, return_tensors="pt"\)\["pixel_values"\]\[0\]`\.'
    with pytest.raises(TypeError, match=rf"got a dictionary of 'pixel_values': \w+ in item 0\. {remedy}"):
        IndexedImages([BatchFeature(pixel_values=pixels)])[0]


@pytest.mark.parametrize("item", [torch.zeros(1, 3, 4, 4), BatchFeature(pixel_values=torch.zeros(1, 3, 4, 4))])
def test_an_error_about_a_batch_of_one_image_names_the_remedy(item):
    with pytest.raises(
        TypeError,
        match=r"\(1, 3, 4, 4\) in item 0\. Remove the first dimension of the tensor, for example by `image\[0\]`",
    ):
        IndexedImages([item])[0]


def test_an_error_about_a_grayscale_image_of_integers_does_not_remove_its_channel():
    with pytest.raises(TypeError, match="Give the dataset a transform that ends in a float tensor"):
        IndexedImages([torch.zeros(1, 4, 4, dtype=torch.uint8)])[0]


@pytest.mark.parametrize("images", [[], IMAGES[:0], FromFunction(IMAGES.__getitem__, 0)])
def test_rejects_an_empty_dataset(images):
    with pytest.raises(ValueError, match=r"`images` must hold at least one image, got none\. Check the folder"):
        IndexedImages(images)


@pytest.mark.usefixtures("without_shape_checks")
def test_rejects_a_batch_of_different_shapes():
    items = [(torch.zeros(3, 4, 4), 7), (torch.zeros(3, 4, 4), 2), (torch.zeros(3, 4, 5), 9)]
    message = r"must have the same shape, got \(3, 4, 4\) in item 7 and \(3, 4, 5\) in item 9\. Resize and crop"
    with pytest.raises(ValueError, match=message):
        stack_images(items)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_dataset_names_the_item(num_workers):
    loader = DataLoader(
        IndexedImages(FromFunction(fail_at_three)), batch_size=5, num_workers=num_workers, collate_fn=stack_images
    )
    with pytest.raises(OSError, match="image file is truncated") as caught:
        next(iter(loader))
    assert "while loading item 3 of `images`" in "".join([*caught.value.args, *getattr(caught.value, "__notes__", [])])
