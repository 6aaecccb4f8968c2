"""Small folders in the layouts of published datasets. The gray value of an image is its number in the layout."""

import numpy as np
from PIL import Image
from scipy.io import savemat


def save_image(path, number=0):
    """Save an image of one gray value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), number).save(path)


def write_lines(path, lines):
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cub200(root, class_of=(1, 1, 2, 2), lists=None):
    """Write CUB_200_2011 with one image per entry of `class_of`; `lists` replaces the lines of some lists."""
    classes = sorted(set(class_of))
    files = [f"{key:03}.Bird_{key}/{number}.jpg" for number, key in enumerate(class_of)]
    content = {
        "classes.txt": [f"{key} {key:03}.Bird_{key}" for key in classes],
        "images.txt": [f"{number} {file}" for number, file in enumerate(files, 1)],
        "image_class_labels.txt": [f"{number} {key}" for number, key in enumerate(class_of, 1)],
    }
    for name, lines in (content | (lists or {})).items():
        write_lines(root / name, lines)
    for number, file in enumerate(files):
        save_image(root / "images" / file, number)
    return root


def cars196(root, class_of=(1, 1, 2, 3, 4, 4), names=("Audi", "BMW", "Fiat", "Volvo"), files=None):
    """Write cars_annos.mat, with a structure array (1, n) and a cell array (1, k), and car_ims/."""
    files = files or [f"car_ims/{number:06}.jpg" for number in range(1, len(class_of) + 1)]
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    rows = [(file, 112, 7, 853, 717, np.uint8(key), np.uint8(0)) for file, key in zip(files, class_of, strict=True)]
    annotations = np.array([rows], dtype=[(field, object) for field in fields])
    content = {"annotations": annotations, "class_names": np.array([names], dtype=object)}
    for number, file in enumerate(files):
        save_image(root / file, number)
    savemat(root / "cars_annos.mat", content, do_compression=True)
    return root


def sop(root, train=(1, 1, 2), test=(3, 3, 4, 4)):
    """Write Stanford_Online_Products: two lists with the class of each image, and one folder per category."""
    number = 0
    for split, class_of in (("train", train), ("test", test)):
        lines = ["image_id class_id super_class_id path"]
        for key in class_of:
            file = f"bicycle_final/11108512{key}_{number}.JPG"
            save_image(root / file, number)
            number += 1
            lines.append(f"{number} {key} 1 {file}")
        write_lines(root / f"Ebay_{split}.txt", lines)
    return root


INSHOP = (
    ("id_00000002", "train"),
    ("id_00000002", "train"),
    ("id_00000007", "gallery"),
    ("id_00000004", "query"),
    ("id_00000004", "gallery"),
    ("id_00000007", "query"),
    ("id_00000009", "train"),
)


def inshop(root, rows=INSHOP, eval_folder="Eval", image_folder="Img", count=None):
    """Write list_eval_partition.txt, with padded columns as in the published list, and img/."""
    lines = [str(len(rows) if count is None else count), "image_name item_id evaluation_status"]
    for number, (item, split) in enumerate(rows):
        file = f"img/WOMEN/Dresses/{item}/{number:02}_1_front.jpg"
        save_image(root / image_folder / file, number)
        lines.append(f"{file:<80}{item:<15}{split}")
    write_lines(root / eval_folder / "list_eval_partition.txt", lines)
    return root
