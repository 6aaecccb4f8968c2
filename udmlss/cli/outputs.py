"""The subcommands `embed`, `export` and `report`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import udmlss
from udmlss import EmbeddingModel
from udmlss._checks import value_error
from udmlss._files import output_file, replace_file
from udmlss.backbones import Backbone
from udmlss.cli.images import advise_skipping, open_images
from udmlss.cli.machine import Machine, check_workers, choose_device
from udmlss.cli.messages import count, messenger
from udmlss.cli.run_folder import RunFolder
from udmlss.data import ImageFiles
from udmlss.models import export_onnx, load_model
from udmlss.report import write_report


def embed(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    workers: int | None = None,
    device: str | None = None,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> Path:
    """Embed a folder of images with a trained model.

    The embeddings are written to a .npy file, one row of unit length per image, and the paths of the images in the
    same order to a .txt file of the same name.

    Args:
        model: Folder of a run, or of a saved model.
        folder: Folder whose images are embedded, also those in its subfolders, or a .txt, .csv, .tsv or .parquet
            file with the paths of images.
        out: Name of the .npy file. Missing folders are created. An existing file, and the .txt file of the same name,
            are replaced.
        workers: Number of processes that load images. By default one per core, at most 16, and fewer if their batches
            do not fit into shared memory. On a single core the main process loads the images.
        device: Device of PyTorch, such as "cuda" or "cpu". By default a GPU if there is one.
        skip_unreadable: Whether to read all files first and to skip those that are not images. By default such a
            file is an error.
        progress: Whether to print what is done.

    Returns:
        The path of the .npy file.

    Raises:
        ValueError: `model` has no model or is a run that is not finished, `folder` has no images, the suffix of `out`
            is not .npy, a .txt file of the same name exists without a .npy file, or a path cannot be a line of a text
            file.
        OSError: An image cannot be read, or a file cannot be written.

    Example:
        >>> from udmlss import cli
        >>> cli.embed("run", "new-photos", out="new-photos.npy")  # doctest: +SKIP
        PosixPath('new-photos.npy')
    """
    check_workers(workers)
    path = output_file("out", out, ".npy")
    names = path.with_suffix(".txt")
    if names.resolve() == Path(folder).expanduser().resolve():
        raise value_error("`out` must have another name than the list of images", path, "Choose another name")
    if names.exists() and not path.exists():
        raise value_error("`out` must not have the name of another text file", names, "Choose another name")
    opened = open_model(model)
    choose_device(device)  # an error is raised before the images are read
    paths = open_images(folder, skip_unreadable=skip_unreadable, progress=progress)
    odd = next((each for each in paths if re.search(r"[\r\n]|\s\Z", str(each))), None)
    if odd is not None:
        rule = "A path in a text file must not contain line breaks or end in a blank"
        raise value_error(rule, repr(str(odd)), "Rename the file")
    with replace_file(names) as part:
        part.write_text("".join(f"{each}\n" for each in paths), encoding="utf-8")
        with advise_skipping():
            embed_paths(*opened, paths, out=path, device=device, workers=workers, progress=progress)
    return path


def export(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Export a trained model to ONNX.

    The exported model takes RGB images of 8 bits per channel that were resized and cropped, and returns embeddings of
    unit length.

    Args:
        run: Folder of a run, or of a saved model.
        path: Name of the .onnx file. Missing folders are created, and an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        ValueError: `run` has no model or is not finished, or the suffix of `path` is not .onnx.
        ImportError: The packages for ONNX are not installed.
        OSError: The file cannot be written.

    Example:
        >>> from udmlss import cli
        >>> cli.export("run", "model.onnx")  # doctest: +SKIP
        PosixPath('model.onnx')
    """
    path = output_file("path", path, ".onnx")
    trained, backbone = open_model(run)
    export_onnx(trained, path, backbone=backbone)
    return path


def report(run: str | os.PathLike[str]) -> Path:
    """Write the report of a finished run again.

    The images of the run are read again. A warning states how many of those in the report cannot be read.

    Args:
        run: Folder of the run.

    Returns:
        The path of the report, an HTML file.

    Raises:
        ValueError: `run` is not a finished run.
        ImportError: The packages for the report are not installed.
        OSError: None of the images of the run exists, or the file cannot be written.

    Example:
        >>> from udmlss import cli
        >>> cli.report("run")  # doctest: +SKIP
        PosixPath('run/report.html')
    """
    found = RunFolder.finished(run)
    summary, paths = found.read_summary(), found.read_paths()
    if not any(map(os.path.isfile, paths)):
        images = f"none of {count(len(paths), 'image')}, such as {paths[0]}"
        raise FileNotFoundError(f"The images of the run must exist, got {images}. Mount their disk, or move them back.")
    return write_report(
        found.report,
        paths,
        found.read_embeddings(),
        found.read_pseudo_labels(),
        history=summary.history,
        start_scores=summary.start,
        start_embeddings=torch.from_numpy(np.load(found.start_embeddings)).float(),
        title=found.folder.absolute().name,
        summary=summary.describe(),
    )


def embed_paths(
    model: EmbeddingModel,
    backbone: Backbone,
    paths: Sequence[Path],
    *,
    out: Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "n d"]:
    """Embed image files with a model and its backbone; `embed` documents the other arguments."""
    machine = Machine.choose(device, image_size=backbone.image_size, workers=workers)
    messenger(progress=progress)(f"Embedding {count(len(paths), 'image')} on {machine}")
    images = ImageFiles(paths, transform=backbone.test_transform(), min_size=backbone.min_size)
    return udmlss.embed(machine.place(model), images, out=out, progress=progress, **machine.options)


def open_model(folder: str | os.PathLike[str]) -> tuple[EmbeddingModel, Backbone]:
    """Load the model of a run, or a saved model."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        rule, found = "A model must be the folder of a run, or of a saved model", f"{folder}, which is not a folder"
        raise value_error(rule, found, "Check the path, or train first: udmlss train FOLDER --out RUN")
    if (path / "run.json").is_file() and not (path / "config.json").is_file():
        RunFolder.finished(path)
    model, backbone = load_model(path / "model" if (path / "model").is_dir() else path)
    if backbone is None:
        rule, remedy = "A model must be saved with its backbone", "Pass the folder of a run, or save it with `backbone`"
        raise value_error(rule, f"{folder} without one", remedy)
    return model, backbone
