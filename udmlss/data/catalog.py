"""What the authors of the data sets publish: the names of their files, checksums and numbers of images."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Split:
    """How much of a data set a split holds.

    Args:
        images: Number of images.
        classes: Number of classes.
    """

    images: int
    classes: int


@dataclass(frozen=True)
class Published:
    """A data set as its authors publish it.

    Args:
        name: What it is called here and by `python -m udmlss.data`.
        folder: The folder that all its files lie in.
        archives: Where its archive of pictures may lie, below the folder that holds the data set.
        splits: What each split holds.
        md5: Checksums of files beside the archive and of the archive itself, as widely used loaders list them.
    """

    name: str
    folder: str
    archives: tuple[str, ...]
    splits: Mapping[str, Split]
    md5: Mapping[str, str]

    def archive_in(self, root: Path) -> Path | None:
        """Return the archive of pictures below `root`, if there is one."""
        return next((root / to_device for to_device in self.archives if (root / to_device).is_file()), None)

    def how_to_unpack(self, root: Path) -> str:
        """Return the line to type for an archive that is not unpacked yet."""
        return f"python -m udmlss.data {self.name} {shlex.quote(str(root))} --unpack"


CUB200 = Published(
    name="cub200",
    folder="CUB_200_2011",
    archives=("CUB_200_2011.tgz",),
    splits={"train": Split(5864, 100), "test": Split(5924, 100)},
    md5={"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
)
CARS196 = Published(
    name="cars196",
    folder="cars196",
    archives=("car_ims.tgz",),
    splits={"train": Split(8054, 98), "test": Split(8131, 98)},
    md5={
        "car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14",
        "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc",
    },
)
SOP = Published(
    name="sop",
    folder="Stanford_Online_Products",
    archives=("Stanford_Online_Products.zip",),
    splits={"train": Split(59551, 11318), "test": Split(60502, 11316)},
    md5={"Stanford_Online_Products.zip": "7f73d41a2f44250d4779881525aea32e"},
)
INSHOP = Published(
    name="inshop",
    folder="In-shop Clothes Retrieval Benchmark",
    archives=("Img/img.zip", "img.zip"),
    splits={"train": Split(25882, 3997), "query": Split(14218, 3985), "gallery": Split(12612, 3985)},
    md5={},
)
