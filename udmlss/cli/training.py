"""The subcommand `train`."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from math import ceil, isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from udmlss import (
    BestWeights,
    Checkpoint,
    ClusterPseudoLabeler,
    EmbeddingModel,
    Epochs,
    FitResult,
    compare_colors,
    embed,
    embedder_from_features,
    fit,
)
from udmlss._checks import check_integer, check_number, value_error
from udmlss._files import replace_file
from udmlss.backbones import Backbone, load_backbone
from udmlss.backbones.averaged_views import count_views
from udmlss.cli.images import advise_skipping, open_images
from udmlss.cli.machine import Machine, check_workers, choose_device
from udmlss.cli.messages import count, duration, messenger
from udmlss.cli.outputs import report
from udmlss.cli.run_folder import RunFolder
from udmlss.cli.stopwatch import Stopwatch, training_seconds
from udmlss.cli.summary import TrainedRun
from udmlss.data import ImageFiles
from udmlss.inference import embed_features
from udmlss.models import save_model
from udmlss.neighbors import neighbor_lists
from udmlss.training.callbacks import CSVLogger
from udmlss.types import Precision

_CPU_IMAGE_SIZE = 160  # images of 160 pixels take half the time of images of 224 pixels, the size of the weights
_EMBEDDING_SIZE = 512
_NEIGHBORS = 10
_EPOCHS_BETWEEN_CHECKPOINTS = 0.25
_IMAGES_PER_STEP = 80  # by the defaults of `fit`
_EPOCHS, _LEAST_STEPS = 4, 125  # half as long as `fit`
_MOST_STEPS_ON_CPU = 150  # four to seven minutes on two fast cores
_BATCH_SIZE = 128  # of embedding
_TIMED_BATCHES = 8  # per worker, because a worker loads the next two while the first is embedded
_STEPS_PER_ROUND = 10  # of small datasets, whose epochs have fewer


def train(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    backbone: str = "efficientnet-lite0",
    image_size: int | None = None,
    images_per_cluster: int | None = None,
    clusters: int | None = None,
    epochs: float | None = None,
    ignore_colors: bool | None = None,
    ignore_orientation: bool = False,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> TrainedRun:
    """Train a model on a folder of images without labels.

    The images are embedded by a pretrained backbone and clustered, the model is trained on the clusters, and both are
    repeated. The number of clusters need not be known. Ctrl-C ends the training, and the same command resumes it.

    Args:
        folder: Folder whose images are used, also those in its subfolders, or a .txt, .csv, .tsv or .parquet file
            with the paths of images.
        out: Folder of the run. It must be new, empty, or that of an interrupted run with the same settings.
        backbone: Name of the pretrained backbone: "efficientnet-lite0", "efficientnet-lite1" or "efficientnet-lite2",
            whose weights are installed by pip, or "torchvision/" or "timm/" and the name of a model, whose weights are
            downloaded.
        image_size: Height and width in pixels to which images are cropped. Larger images show finer details, and the
            time grows with the square. By default the size with which the weights were trained, or on a CPU at most
            160.
        images_per_cluster: Typical number of images per class. By default it is chosen from the images.
        clusters: Number of clusters of k-means, instead of clusters whose number follows from the images.
        epochs: Length of training: how often each image is seen on average. By default 4, or more if the dataset is so
            small that 4 epochs have fewer than 125 optimizer steps. On a CPU the default is at most 150 steps, so that
            it is less than 4 epochs of more than 3,000 images.
        ignore_colors: Whether embeddings ignore colors. Use it if the same thing occurs in different colors. Embedding
            an image then takes twice as long. By default a comparison of the neighbors of images with and without their
            colors decides.
        ignore_orientation: Whether embeddings ignore rotations of images by multiples of 90 degrees. Use it if the
            same thing occurs in any orientation, as under a microscope or seen from above. Embedding an image then
            takes four times as long.
        seed: Seed of all random numbers.
        workers: Number of processes that load images. By default one per core, at most 16, and fewer if their batches
            do not fit into shared memory. On a single core the main process loads the images.
        device: Device of PyTorch, such as "cuda" or "cpu". By default a GPU if there is one.
        precision: "float32", or "bfloat16" or "float16" for mixed precision. By default "bfloat16" on GPUs that compute
            in it. "float16" is faster than the default, "float32", on GPUs such as T4 and V100.
        skip_unreadable: Whether to read all files first and to skip those that are not images. By default such a
            file is an error.
        progress: Whether to print what is done.

    Returns:
        The number of images, the sizes of the clusters, and the label-free scores.

    Raises:
        ValueError: A setting is out of range, there are too few images, or `out` has other files, belongs to a run
            with other settings, or is used by another process.
        ImportError: The package of the backbone is not installed.
        OSError: An image cannot be read, a file cannot be written, or the weights of the backbone cannot be downloaded.
        KeyboardInterrupt: The user pressed Ctrl-C.

    Example:
        >>> from udmlss import cli
        >>> run = cli.train("photos", out="run")  # doctest: +SKIP
        >>> print(run)  # doctest: +SKIP
    """
    say = messenger(progress=progress)
    _check_numbers(image_size=image_size, images_per_cluster=images_per_cluster, clusters=clusters, seed=seed)
    if epochs is not None:
        check_number("epochs", epochs, above=0)
    check_workers(workers)
    seed = int(seed)  # integers of NumPy cannot be written as JSON
    clusters, images_per_cluster = (None if each is None else int(each) for each in (clusters, images_per_cluster))
    labeler = ClusterPseudoLabeler(clusters, images_per_cluster=images_per_cluster)
    run = RunFolder(out)
    run.check()
    network = _load_backbone(backbone, image_size, choose_device(device))
    paths = open_images(folder, skip_unreadable=skip_unreadable, progress=progress)
    labeler.check_size(len(paths))
    machine = Machine.choose(device, image_size=network.image_size, precision=precision, workers=workers)
    say(f"{count(len(paths), 'image')} in {folder}")
    say(f"{backbone} for images of {network.image_size} pixels, on {machine}")
    settings = {
        "backbone": backbone,
        "image_size": network.image_size,
        "images_per_cluster": images_per_cluster,
        "clusters": clusters,
        "epochs": default_epochs(len(paths), machine.device) if epochs is None else float(epochs),
        "ignore_colors": None if ignore_colors is None else bool(ignore_colors),
        "ignore_orientation": bool(ignore_orientation),
        "seed": seed,
        "precision": machine.precision,
    }
    source = str(Path(folder).expanduser().absolute())
    images = {"images": source, "number of images": len(paths), "checksum of their paths": _checksum(paths)}
    with run.claim(images | settings):
        if run.is_finished:
            say(f"The run in {run.folder} is finished")
        else:
            try:
                _Training(run, network, paths, labeler, machine=machine, settings=settings, progress=progress).run_all()
            except KeyboardInterrupt:
                raise KeyboardInterrupt("Run the same command again to continue") from None
        if not run.report.exists():
            say("4/4 Writing the report")
            _write_report(run)
    return run.read_summary()


class _Training:
    """A training, from the backbone to the files of the run."""

    def __init__(
        self,
        run: RunFolder,
        network: Backbone,
        paths: Sequence[Path],
        labeler: ClusterPseudoLabeler,
        *,
        machine: Machine,
        settings: dict[str, Any],
        progress: bool,
    ) -> None:
        self.run, self.network, self.labeler, self.machine = run, network, labeler, machine
        self.settings, self.seed = settings, settings["seed"]
        self.epochs = max(settings["epochs"], 2 * _IMAGES_PER_STEP / len(paths))  # two rounds can be compared
        self.paths, self.progress = paths, progress
        self.say = messenger(progress=progress)
        self.images = ImageFiles(paths, transform=network.test_transform(), min_size=network.min_size)

    def run_all(self) -> None:
        """Train, and write the files of the run."""
        if self._choose_colors():
            self.network = self.network.without_colors()
        if self.settings["ignore_orientation"]:
            self.network = self.network.without_orientation()
        model = self._build_model()
        result = self._fit(model)
        self._write(model, result)

    def _build_model(self) -> EmbeddingModel:
        """Initialize the embedder from the features of the images, and store the embeddings before training."""
        self.say("1/4 Embedding the images with the pretrained backbone")
        model = EmbeddingModel(self.machine.place(self.network.trunk), nn.Identity())
        with advise_skipping(), Stopwatch(model.trunk) as stopwatch:
            n_batches = _TIMED_BATCHES * max(1, self.machine.num_workers)
            batch_size = min(_BATCH_SIZE, ceil(len(self.paths) / n_batches))
            self.start_features = self._compute_features(model, batch_size)
        self.seconds_per_pass = stopwatch.seconds_per_image * len(self.paths)
        self.embedder = embedder_from_features(self.start_features, min(_EMBEDDING_SIZE, self.start_features.shape[1]))
        model = self.machine.place(EmbeddingModel(model.trunk, self.embedder))
        self._save_embeddings(model, self.start_features, self.run.start_embeddings, torch.float16)
        return model

    def _choose_colors(self) -> bool:
        """Return whether to ignore colors: as the user chose, as before an interruption, or as is found out."""
        for chosen in (self.settings["ignore_colors"], self.run.ignore_colors):
            if chosen is not None:
                return bool(chosen)
        self.say("Comparing the images with and without their colors")
        self.machine.place(self.network.trunk)
        with advise_skipping():
            found = compare_colors(
                self.network, self.images, seed=self.seed, progress=self.progress, **self.machine.options
            )
        reason = (
            "the images are gray"
            if found.are_gray
            else "there are too few images to compare"
            if isnan(found.saturation)
            else f"an image and its nearest neighbors have {found.with_colors:.1%} of their neighbors in common with "
            f"colors, and {found.without_colors:.1%} without"
        )
        self.say(f"Colors are {'' if found.ignore_colors else 'not '}ignored: {reason}")
        self.run.ignore_colors = found.ignore_colors
        return found.ignore_colors

    def _fit(self, model: EmbeddingModel) -> FitResult:
        epochs_per_round = max(1.0, _STEPS_PER_ROUND * _IMAGES_PER_STEP / len(self.paths))
        n_rounds = max(2, round(self.epochs / epochs_per_round))
        seconds = training_seconds(
            self.seconds_per_pass, n_views=count_views(self.network.trunk), epochs=self.epochs, n_rounds=n_rounds
        )
        n_steps = Epochs(self.epochs).in_steps(len(self.paths), _IMAGES_PER_STEP)
        self.say(
            f"2/4 Training for {count(n_steps, 'step')} ({self.epochs:.3g} epoch{'s' * (self.epochs != 1)}), "
            f"about {duration(seconds)}{' in all' * self.run.has_checkpoints}; "
            "Ctrl-C stops it, and the same command resumes it"
        )
        augment = self.network.train_transform()
        result = fit(
            model,
            ImageFiles(self.paths, transform=augment, min_size=self.network.min_size),
            cluster_images=self.images,
            labeler=self.labeler,
            max_steps=Epochs(self.epochs),
            relabel_every=Epochs(self.epochs / n_rounds),
            callbacks=[
                BestWeights(),
                CSVLogger(self.run.folder),
                Checkpoint(self.run.checkpoints, every=Epochs(_EPOCHS_BETWEEN_CHECKPOINTS), resume=True),
            ],
            start_features=self.start_features,
            refit_embedder=False,  # the features for it also yield the embeddings of the run
            seed=self.seed,
            progress=self.progress,
            **self.machine.options,
        )
        if result.stop_reason == "interrupt":
            raise KeyboardInterrupt
        return result

    def _write(self, model: EmbeddingModel, result: FitResult) -> None:
        self.say("3/4 Embedding and clustering the images with the trained model")
        features = self._compute_features(model) if result.features is None else result.features
        self.embedder.fit(features)
        save_model(
            model,
            self.run.model,
            backbone=self.network,
            recipe=self.settings | {"ignore_colors": self.network.ignores_colors},
        )
        embeddings = self._save_embeddings(model, features, self.run.embeddings, torch.float32)
        pseudo_labels = self.labeler.label(embeddings)
        neighbors = neighbor_lists(embeddings, min(_NEIGHBORS, len(embeddings) - 1), seed=self.seed)
        self.run.write_images(self.paths, pseudo_labels, neighbors)
        summary = TrainedRun.of(self.run.folder, result, pseudo_labels, self.network)
        self.run.finish(summary)

    def _compute_features(self, model: EmbeddingModel, batch_size: int = _BATCH_SIZE) -> Tensor:
        options = self.machine.options | {"batch_size": batch_size, "progress": self.progress}
        return embed(model, self.images, output="features", **options)

    def _save_embeddings(self, model: EmbeddingModel, features: Tensor, path: Path, dtype: torch.dtype) -> Tensor:
        """Compute embeddings from features of the trunk, write them to a .npy file and return them."""
        embeddings = embed_features(model, features).to(dtype)
        with replace_file(path) as part, part.open("wb") as file:
            np.save(file, embeddings.numpy())
        return embeddings


def _check_numbers(**settings: int | None) -> None:
    least = {"image_size": 1, "images_per_cluster": 2, "clusters": 2, "seed": 0}
    for name, value in settings.items():
        if value is not None:
            check_integer(name, value, least[name])
    if settings["clusters"] is not None and settings["images_per_cluster"] is not None:
        rule = "At most one of `clusters` and `images_per_cluster` must be given"
        raise value_error(rule, "both", "Omit one of them")


def default_epochs(n_images: int, device: torch.device) -> float:
    """Return the length of the training on this number of images."""
    epochs_per_step = _IMAGES_PER_STEP / n_images
    epochs = max(float(_EPOCHS), _LEAST_STEPS * epochs_per_step)
    return min(epochs, _MOST_STEPS_ON_CPU * epochs_per_step) if device.type == "cpu" else epochs


def _load_backbone(name: str, image_size: int | None, device: torch.device) -> Backbone:
    """Load a backbone, by default for smaller images if there is no GPU."""
    backbone = load_backbone(name, image_size=image_size)
    if image_size is None and device.type == "cpu" and backbone.image_size > _CPU_IMAGE_SIZE:
        with suppress(ValueError):  # a backbone may accept one size only
            return load_backbone(name, image_size=_CPU_IMAGE_SIZE)
    return backbone


def _write_report(run: RunFolder) -> None:
    """Write the report, or issue a warning if its packages are missing: the other files do not need them."""
    try:
        report(run.folder)
    except ImportError as error:
        warnings.warn(f"The report is missing: {error}", stacklevel=2)


def _checksum(paths: Sequence[Path]) -> str:
    return sha256("\n".join(map(str, paths)).encode()).hexdigest()
