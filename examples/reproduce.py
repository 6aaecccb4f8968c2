"""Train by a published method with its published settings, and score on classes that training did not see.

    python examples/reproduce.py --method udml-ss --data cub200 --root CUB_200_2011
    python examples/reproduce.py --method stml --data pictures --backbone efficientnet-lite0
    python examples/reproduce.py --method udml --data sop --root Stanford_Online_Products --max-steps 1000
    python examples/reproduce.py --method cbswr --data glyphs

The settings are printed first. Torchvision does not have all published networks, so the scores differ from the
published ones; docs/guides/methods-side-by-side.md lists both. Labels are used for scoring, and for training by the
method `supervised` only.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cub_resnet50
import quickstart
import torch
from folders import open_folder
from pooling import LAYERS, POOLINGS, set_pooling
from published import LABELERS, LOSSES, METHODS, SCHEDULES, Published, build_criterion, settings_for
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from true_labels import TrueLabels
from two_views import TwoViews, train_cbswr, train_instances, train_stml

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    Epochs,
    RotationPretextHead,
    WeightAverage,
    evaluate,
    fit,
    keep_freed_memory,
    parameter_groups,
)
from udmlss.data import Glyphs, ImageFiles, cars196, cub200, glyphs, inshop, sop
from udmlss.losses import SelfSupervisedRanking
from udmlss.models import BatchNormNeck

OPENERS = {"cub200": cub200, "cars196": cars196, "sop": sop, "inshop": inshop, "folder": open_folder}
CLUSTER_SETTINGS = {  # settings of methods that learn from clusters
    *("clusters_per_batch", "samples_per_cluster", "relabel_every", "rotation_weight", "rotation_images", "ranking"),
    *("synthesis_weight", "views", "proxy_lr", "clip_norm", "clusterer", "n_neighbors"),
}
TWO_VIEW_SETTINGS = {"batch", "neighbor_fraction", "neighbors", "delta"}
MODEL_SETTINGS = {"backbone", "pooling", "image_size", "embedding_size", "neck", "note"}
KS = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 40)}


@dataclass(frozen=True)
class Data:
    """The images of a dataset.

    Args:
        train: Training images with their augmentations.
        plain: The same images with test-time transforms.
        test: Images that are searched for scoring.
        queries: Images of the queries. None uses each test image as a query.
    """

    train: Glyphs | ImageFiles
    plain: Glyphs | ImageFiles
    test: Glyphs | ImageFiles
    queries: ImageFiles | None


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Published]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--data", required=True, help="cub200, cars196, sop, inshop, glyphs, or a folder of images")
    parser.add_argument("--root", type=Path, help="folder of the dataset; glyphs needs none")
    parser.add_argument("--max-steps", type=int, help="largest number of optimizer steps")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--seed", type=int, default=0)
    changes = parser.add_argument_group("settings", "Changes to the published settings.")
    changes.add_argument("--backbone", choices=LAYERS)
    changes.add_argument("--pooling", choices=["average", *POOLINGS])
    changes.add_argument("--image-size", type=int)
    changes.add_argument("--crop-scale", type=float, nargs=2, metavar=("MIN", "MAX"), help="area of random crops")
    changes.add_argument("--embedding-size", type=int)
    changes.add_argument("--n-clusters", type=int)
    changes.add_argument("--n-neighbors", type=int)
    changes.add_argument("--clusters-per-batch", type=int)
    changes.add_argument("--rotation-images", type=int)
    changes.add_argument("--batch", type=int, help="images per batch, for methods that compare two views of each")
    changes.add_argument("--lr", type=float, help="learning rate of the trunk")
    changes.add_argument("--new-lr", type=float, help="learning rate of the other parts, without proxies")
    changes.add_argument("--freeze-batch-norm", action=argparse.BooleanOptionalAction)
    args = parser.parse_args(arguments)
    if args.data not in {*OPENERS, "glyphs"}:
        if not Path(args.data).is_dir():
            parser.error(f"--data must be cub200, cars196, sop, inshop, glyphs, or an existing folder, got {args.data}")
        args.data, args.root = "folder", Path(args.data)
    if args.root is None and args.data != "glyphs":
        parser.error(f"--data {args.data} needs --root, the folder of the dataset")
    if args.max_steps is not None and args.max_steps < 1:
        parser.error(f"--max-steps must be at least 1, got {args.max_steps}")
    standard = settings_for(args.method, args.data)
    given = {name: value for name in asdict(standard) if (value := vars(args).get(name)) is not None}
    settings = replace(standard, **given)
    if args.data == "glyphs" and (settings.backbone, settings.image_size) != ("small", 32):
        parser.error(
            "--data glyphs needs the small backbone and images of 32 pixels; remove --backbone and --image-size"
        )
    if settings.backbone == "small" and settings.pooling != "average":
        if args.pooling:
            parser.error("--backbone small has no pooling layer; remove --pooling")
        settings = replace(settings, pooling="average")
    return args, settings


def open_data(args: argparse.Namespace, settings: Published) -> Data:
    if args.data == "glyphs":
        return Data(glyphs("train", transform=quickstart.augment), glyphs("train"), glyphs("test"), None)
    augment, plain = cub_resnet50.build_transforms(settings.backbone, settings.image_size, tuple(settings.crop_scale))
    opened = partial(OPENERS[args.data], args.root)
    train, clustered = opened("train", transform=augment), opened("train", transform=plain)
    if args.data == "inshop":
        return Data(train, clustered, opened("gallery", transform=plain), opened("query", transform=plain))
    return Data(train, clustered, opened("test", transform=plain), None)


def build_model(args: argparse.Namespace, settings: Published) -> tuple[EmbeddingModel, bool]:
    """Return the model, and whether its trunk has ImageNet weights."""
    torch.manual_seed(args.seed)
    if settings.backbone == "small":
        trunk, pretrained = quickstart.build_trunk(channels=1 if args.data == "glyphs" else 3), False
        n_features = 128 * (settings.image_size // 16) ** 2
    else:
        trunk, pretrained = cub_resnet50.build_trunk(settings.backbone, settings.image_size)
        n_features = cub_resnet50.FEATURES[settings.backbone]
    set_pooling(trunk, settings.backbone, settings.pooling)
    embedder: nn.Module = nn.Linear(n_features, settings.embedding_size)
    if settings.neck:
        neck = BatchNormNeck(settings.embedding_size)
        embedder = neck if settings.embedding_size == n_features else nn.Sequential(embedder, neck)
    model = EmbeddingModel(trunk, embedder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device, memory_format=torch.channels_last), pretrained


def shorten(settings: Published, n_images: int, max_steps: int | None) -> Published:
    """Return the settings with the number of steps, at most `max_steps`, in place of epochs."""
    steps = settings.steps
    if isinstance(steps, Epochs):
        batch_size = settings.batch
        if settings.kind in {"clusters", "labels"}:
            batch_size = settings.clusters_per_batch * settings.samples_per_cluster * settings.views
        steps = steps.in_steps(n_images, batch_size)
    return replace(settings, steps=min(steps, max_steps or steps))


def describe(settings: Published) -> dict[str, object]:
    """Return the settings that the kind of training uses."""
    every = asdict(settings)
    if settings.kind == "frozen":
        return {name: value for name, value in every.items() if name in MODEL_SETTINGS}
    unused = TWO_VIEW_SETTINGS if settings.kind in {"clusters", "labels"} else CLUSTER_SETTINGS
    unused = unused | {"n_neighbors" if settings.clusterer == "k-means" else "n_clusters"}
    return {name: value for name, value in every.items() if name not in unused}


def build_optimizer(
    settings: Published,
    model: EmbeddingModel,
    criterion: nn.Module,
    auxiliary: nn.Module | None,
    *heads: nn.Module | None,
) -> Optimizer:
    groups = parameter_groups(
        model,
        criterion,
        *heads,
        auxiliary=auxiliary,
        trunk_lr=settings.lr,
        lr=settings.new_lr,
        proxy_lr=settings.proxy_lr,
    )
    if settings.optimizer == "sgd":
        return SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return {"adam": Adam, "adamw": AdamW}[settings.optimizer](groups, weight_decay=settings.weight_decay)


def train_on_clusters(model: EmbeddingModel, data: Data, settings: Published, args: argparse.Namespace) -> None:
    labeler = ClusterPseudoLabeler(settings.n_clusters)
    if settings.kind == "labels":
        labeler = TrueLabels(data.train.labels)
    elif settings.clusterer != "k-means":
        labeler = LABELERS[settings.clusterer](settings.n_neighbors)
    criterion = build_criterion(
        LOSSES[settings.loss](settings.n_clusters, settings.embedding_size),
        settings.embedding_size,
        rotation_weight=settings.rotation_weight,
        synthesis_weight=settings.synthesis_weight,
    )
    head = auxiliary = None
    if settings.rotation_weight:
        head = RotationPretextHead(model.embedder.in_features, max_images=settings.rotation_images)
    if settings.ranking:
        auxiliary = SelfSupervisedRanking(model.embedder.in_features)
    optimizer = build_optimizer(settings, model, criterion, auxiliary, head)
    fit(
        model,
        data.train,
        cluster_images=data.plain,
        labeler=labeler,
        criterion=criterion,
        rotation_head=head,
        auxiliary=auxiliary,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: SCHEDULES[settings.schedule](step / settings.steps)),
        clusters_per_batch=settings.clusters_per_batch,
        samples_per_cluster=settings.samples_per_cluster,
        views=settings.views,
        max_steps=settings.steps,
        relabel_every=settings.relabel_every,
        freeze_batch_norm=settings.freeze_batch_norm,
        average_weights=False,
        clip_norm=settings.clip_norm,
        num_workers=args.workers,
        callbacks=[] if settings.ema_decay is None else [WeightAverage(settings.ema_decay)],
        seed=args.seed,
    )


def train_on_views(model: EmbeddingModel, data: Data, settings: Published, args: argparse.Namespace) -> None:
    views = TwoViews(
        images=data.train,
        plain=data.plain,
        batch=settings.batch,
        steps=settings.steps,
        freeze_batch_norm=settings.freeze_batch_norm,
        build_optimizer=lambda model, others: build_optimizer(settings, model, nn.Identity(), others),
        schedule=SCHEDULES[settings.schedule],
        workers=args.workers,
        seed=args.seed,
    )
    fraction = settings.neighbor_fraction
    if settings.kind == "instances":
        train_instances(model, views, LOSSES[settings.loss](1, settings.embedding_size), neighbor_fraction=fraction)
    elif settings.kind == "cbswr":
        train_cbswr(model, views, settings.backbone, n_clusters=settings.n_clusters, neighbor_fraction=fraction)
    else:
        train_stml(model, views, decay=settings.ema_decay, neighbors=settings.neighbors, delta=settings.delta)


def main(arguments: Sequence[str] | None = None) -> None:
    args, settings = parse(arguments)
    keep_freed_memory()
    data = open_data(args, settings)
    model, pretrained = build_model(args, settings)
    settings = shorten(settings, len(data.train), args.max_steps)
    settings = replace(settings, freeze_batch_norm=settings.freeze_batch_norm and pretrained)
    print(f"{args.method} on {args.data}, {len(data.train)} training images")
    print("\n".join(f"  {name:20}{value}" for name, value in describe(settings).items()))
    if settings.kind in {"clusters", "labels"}:
        train_on_clusters(model, data, settings, args)
    elif settings.kind != "frozen":
        train_on_views(model, data, settings, args)
    for output in ("features", "embeddings"):
        scores = evaluate(
            model,
            data.test,
            data.test.labels,
            queries=data.queries,
            query_labels=None if data.queries is None else data.queries.labels,
            ks=KS.get(args.data, (1, 2, 4, 8)),
            output=output,
            num_workers=args.workers,
        )
        print(f"{output:10}", scores)


if __name__ == "__main__":
    main()
