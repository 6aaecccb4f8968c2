"""Properties of all published datasets."""

import inspect

import jaxtyping
import layouts
import pytest
import torch

from udmlss import data, embed
from udmlss.data.published.cars196 import CARS196
from udmlss.data.published.cub200 import CUB200
from udmlss.data.published.inshop import INSHOP
from udmlss.data.published.sop import SOP

DATASETS = (CUB200, CARS196, SOP, INSHOP)


@pytest.fixture(params=DATASETS, ids=lambda dataset: dataset.name)
def dataset(request):
    return request.param


@pytest.fixture
def write(dataset):
    return getattr(layouts, dataset.name)


@pytest.fixture
def open_split(dataset):
    return getattr(data, dataset.name)


def test_every_image_is_rgb_and_in_one_split_with_its_own_label(tmp_path, dataset, write, open_split):
    splits = [open_split(write(tmp_path), split) for split in dataset.splits]
    read = {}
    for images in splits:
        assert images.labels.unique().tolist() == list(range(len(images.classes)))
        for (image, label), path in zip(map(images.__getitem__, range(len(images))), images.paths, strict=True):
            red, green, blue = image.getpixel((0, 0))
            assert red == green == blue
            read[red] = (path, images.classes[label])
    assert sorted(read) == list(range(len([*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.JPG")])))
    assert len({path for path, _ in read.values()}) == len(read) == sum(map(len, splits))


def test_transform_is_applied_to_the_image_only(tmp_path, write, open_split):
    assert open_split(write(tmp_path), "train", transform=lambda image: image.size)[0] == ((6, 4), 0)


def test_root_may_be_the_parent_folder_below_the_home_folder(tmp_path, monkeypatch, dataset, write, open_split):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = open_split(write(tmp_path / "data" / dataset.folder), "train")
    assert open_split("~/data", "train").paths == expected.paths


@pytest.mark.parametrize(
    ("names", "found"), [(None, "no such folder"), ([], "an empty folder"), (["b", "a"], "['a', 'b']")]
)
def test_rejects_another_layout_and_lists_the_content(tmp_path, dataset, open_split, names, found):
    root = tmp_path / "here"
    for name in (".", *names) if names is not None else ():
        (root / name).mkdir()
    message = r" must have the layout of .*, with .* and .*\. Pass the folder that"
    with pytest.raises(ValueError, match=message) as caught:
        open_split(root, "train")
    assert str(caught.value).startswith(f"{root} must")
    assert f", got {found}. Pass" in str(caught.value)
    assert all(path in str(caught.value) for paths in dataset.parts for path in paths)


def test_an_incomplete_folder_is_reported_rather_than_its_parent(tmp_path, dataset, write, open_split):
    root = write(tmp_path / dataset.folder)
    (root / dataset.parts[0][0]).unlink()
    names = sorted(path.name for path in root.iterdir())[:8]
    with pytest.raises(ValueError, match=r"\. Pass the folder that contains them, or download the missing") as caught:
        open_split(tmp_path, "train")
    assert str(caught.value).startswith(f"{root} must have")
    assert f"got {names}" in str(caught.value)


def test_reports_the_command_that_unpacks_an_existing_archive(tmp_path, dataset, open_split):
    root = tmp_path / "my data"
    for archive in dataset.archives:
        (root / archive).parent.mkdir(exist_ok=True, parents=True)
        (root / archive).touch()
        command = rf"Unpack the archive: `udmlss dataset {dataset.name} '{root}' --unpack`\.$"
        with pytest.raises(ValueError, match=command):
            open_split(root, "train")
        (root / archive).unlink()


def test_rejects_a_missing_image_only_in_its_split(tmp_path, dataset, write, open_split):
    *splits, split = dataset.splits
    images = open_split(write(tmp_path), split)
    images.paths[1].unlink()
    found = f"must exist, got 1 of {len(images)} missing, the first is {images.paths[1]}"
    with pytest.raises(ValueError, match=found):
        open_split(tmp_path, split)
    assert all(len(open_split(tmp_path, other)) for other in splits)


LISTS = {"cub200": "images.txt", "sop": "Ebay_train.txt", "inshop": "Eval/list_eval_partition.txt"}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("target", ["{outside}", "../outside.jpg", "img/../../outside.jpg"])
def test_rejects_a_list_that_leads_out_of_the_folder(tmp_path, name, target):
    root = getattr(layouts, name)(tmp_path / "data")
    outside = tmp_path / "outside.jpg"
    layouts.save_image(outside)
    path = root / LISTS[name]
    lines = path.read_text().splitlines()
    number = 0 if name == "cub200" else 1 if name == "sop" else 2
    [old] = [word for word in lines[number].split() if word.lower().endswith(".jpg")]
    lines[number] = lines[number].replace(old, target.format(outside=outside))
    layouts.write_lines(path, lines)
    message = r"Every image in the list must be inside .*, got 1 of \d+ outside, the first is"
    with pytest.raises(ValueError, match=message):
        getattr(data, name)(root, "train")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_rejects_links_that_lead_out_of_the_folder(tmp_path, write, open_split, what):
    images = open_split(write(tmp_path / "data"), "train")
    path = images.paths[0] if what == "file" else images.paths[0].parent
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    if path.name in {"car_ims", "img"}:  # the folder of all images may be a link
        assert open_split(tmp_path / "data", "train").paths == images.paths
        return
    message = r"must be inside .*, got \d of \d outside, .* or replace links by the files\."
    with pytest.raises(ValueError, match=message):
        open_split(tmp_path / "data", "train")


def test_links_inside_the_folder_and_to_the_whole_folder_are_followed(tmp_path, monkeypatch, write, open_split):
    path = open_split(write(tmp_path / "data"), "train").paths[0]
    path.rename(path.with_name("other"))
    path.symlink_to("other")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert open_split("../link", "train")[0][1] == 0


def test_rejects_names_that_no_file_can_have(tmp_path):
    root = layouts.sop(tmp_path)
    header = "image_id class_id super_class_id path"
    for name in ("a\0b.jpg", "a" * 5000 + ".jpg"):
        layouts.write_lines(root / "Ebay_train.txt", [header, f"1 1 1 {name}"])
        with pytest.raises(ValueError, match="must exist, got 1 of 1 missing"):
            data.sop(root, "train")


def test_rejects_an_unknown_split(tmp_path, monkeypatch, open_split):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the signature rejects it as well
    with pytest.raises(ValueError, match=r"`split` must be one of 'train', .*, got 'val'\. Pass one of these\."):
        open_split(tmp_path, "val")


def test_docstring_reports_the_published_sizes(dataset, open_split):
    docstring = inspect.getdoc(open_split)
    assert all(f"{size.n_images:,}" in docstring for size in dataset.splits.values())
    assert f"{dataset.splits['train'].n_classes:,}" in docstring


def test_splits_add_up_to_the_whole_dataset():
    # In In-shop, the queries and the gallery show the same 3,985 items.
    totals = ((11_788, 200), (16_185, 196), (120_053, 22_634), (52_712, 7_982 + 3_985))
    for dataset, expected in zip(DATASETS, totals, strict=True):
        sizes = dataset.splits.values()
        assert (sum(size.n_images for size in sizes), sum(size.n_classes for size in sizes)) == expected
    assert INSHOP.splits["query"].n_classes == INSHOP.splits["gallery"].n_classes == 3_985


def test_embed_reports_the_path_and_the_index_of_an_unreadable_image(tmp_path):
    images = data.sop(layouts.sop(tmp_path), "train", transform=lambda image: torch.zeros(3, 4, 4))
    images.paths[2].write_bytes(b"no image")
    with pytest.raises(OSError, match=f"{images.paths[2]} must be a complete image file") as caught:
        embed(torch.nn.Flatten(), images)
    assert caught.value.__notes__ == ["while loading item 2 of `images`"]
