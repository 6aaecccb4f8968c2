"""Train with Lightning: every epoch is a round, whose dataloader embeds and clusters the images.

pip install lightning "udmlss[demo]"
python examples/lightning_module.py --devices 2
python examples/lightning_module.py --folder run        # the same command resumes an interrupted training
"""

import argparse
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    RotationPretextHead,
    Rounds,
    UDMLSSLoss,
    evaluate,
    keep_freed_memory,
    parameter_groups,
)
from udmlss.data import glyphs
from udmlss.distributed import gather, is_rank_zero
from udmlss.training.round import Round


class Batches:
    """The batches of a round, without its state, which Lightning would replace by that of the epoch before."""

    def __init__(self, current: Round) -> None:
        self.current = current

    def __len__(self) -> int:
        return len(self.current)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.current)


class UDMLSS(lightning.LightningModule):
    """A module that clusters at the start of every epoch and trains on batches of clusters.

    Each rank embeds its part of the images and trains on its own batches. The metric loss is computed from the
    embeddings of all ranks. The checkpoints of Lightning hold the clusters.
    """

    def __init__(self, rounds: Rounds, head: RotationPretextHead) -> None:
        super().__init__()
        self.rounds, self.model, self.head = rounds, rounds.model, head
        self.criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))

    def train_dataloader(self) -> Sized:
        self.rounds.end_round()  # if all of its batches were sampled
        current = next(iter(self.rounds), None)
        if current is None:
            return []  # the last round has ended
        self.criterion.start_round(current.pseudo_labels)
        return Batches(current)

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        images, labels = batch
        torch.manual_seed(self.global_step)  # a resumed training rotates the same images as an uninterrupted one
        embeddings = gather(self.model(images))
        loss = self.criterion(embeddings, gather(labels), *self.head.predict_rotations(self.model, images))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model, self.criterion, self.head, trunk_lr=1e-3))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rounds"] = self.rounds.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.rounds.load_state_dict(checkpoint["rounds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="number of rounds (default: 4)")
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps per round (default: 75)")
    parser.add_argument("--devices", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--folder", help="folder of a checkpoint that is saved after every round (default: none)")
    args = parser.parse_args()
    keep_freed_memory()

    lightning.seed_everything(0, verbose=False)
    trunk = nn.Sequential(
        *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
        *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
    )
    model = EmbeddingModel(trunk, nn.Linear(2048, 128))
    augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
    train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
    rounds = Rounds(
        model,
        train,
        ClusterPseudoLabeler(500),
        cluster_images=plain,
        cluster_on="embeddings",
        max_steps=args.rounds * args.steps,
        relabel_every=args.steps,
    )
    trainer = lightning.Trainer(
        max_epochs=args.rounds,
        devices=args.devices,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # `Rounds` distributes its batches itself
        sync_batchnorm=torch.cuda.is_available(),
        enable_checkpointing=args.folder is not None,
        callbacks=[] if args.folder is None else [ModelCheckpoint(args.folder, "last", enable_version_counter=False)],
        logger=False,
    )
    last = Path(args.folder or "", "last.ckpt")
    trainer.fit(UDMLSS(rounds, RotationPretextHead(2048)), ckpt_path=last if args.folder and last.exists() else None)
    if is_rank_zero():
        print(evaluate(model, test, test.labels))


if __name__ == "__main__":
    main()
