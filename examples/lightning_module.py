"""Train with Lightning: every epoch is a round, whose dataloader embeds and clusters the images.

pip install lightning
python examples/lightning_module.py --devices 2
"""

import argparse

import lightning
import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    IndexedImages,
    PseudoLabelSampler,
    RotationPretextHead,
    UDMLSSLoss,
    embed,
    evaluate,
    parameter_groups,
)
from udmlss.data import glyphs
from udmlss.distributed import gather, gather_shards, is_rank_zero, rank, run_on_rank_zero, shard, world_size
from udmlss.types import Images


class UDMLSS(lightning.LightningModule):
    """A module that clusters at the start of every epoch and trains on batches of clusters.

    Each rank embeds its part of the images and trains on its own batches. The metric loss is computed from the
    embeddings of all ranks.
    """

    def __init__(
        self, model: EmbeddingModel, head: RotationPretextHead, images: Images, cluster_images: Images, steps: int
    ) -> None:
        super().__init__()
        self.model, self.head, self.steps = model, head, steps
        self.images, self.cluster_images = images, cluster_images
        self.labeler = ClusterPseudoLabeler(500)
        self.criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        n_images = len(self.images)
        part = embed(self.model, Subset(self.cluster_images, shard(n_images)))
        embeddings = gather_shards(part, n_images, only_rank_zero=True)
        self.pseudo_labels = run_on_rank_zero(lambda: self.labeler.label(embeddings))
        self.criterion.start_round(self.pseudo_labels)
        sampler = PseudoLabelSampler(
            self.pseudo_labels.labels,
            n_batches=self.steps,
            seed=self.current_epoch,
            rank=rank(),
            world_size=world_size(),
        )
        return DataLoader(IndexedImages(self.images), batch_sampler=sampler)

    def training_step(self, batch: tuple[Tensor, Tensor], _number: int) -> Tensor:
        images, indices = batch
        labels = self.pseudo_labels.labels.to(indices.device)[indices]  # Lightning moved the indices to the device
        embeddings = gather(self.model(images))
        loss = self.criterion(embeddings, gather(labels), *self.head.predict_rotations(self.model, images))
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model, self.criterion, self.head, trunk_lr=1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="number of rounds (default: 4)")
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps per round (default: 75)")
    parser.add_argument("--devices", type=int, default=1, help="number of processes (default: 1)")
    args = parser.parse_args()

    lightning.seed_everything(0, verbose=False)
    trunk = nn.Sequential(
        *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
        *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
    )
    model = EmbeddingModel(trunk, nn.Linear(2048, 128))
    trainer = lightning.Trainer(
        max_epochs=args.rounds,
        devices=args.devices,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # PseudoLabelSampler distributes its batches itself
        sync_batchnorm=torch.cuda.is_available(),
        enable_checkpointing=False,
        logger=False,
    )
    augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
    train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
    trainer.fit(UDMLSS(model, RotationPretextHead(2048), train, plain, args.steps))
    if is_rank_zero():
        print(evaluate(model, test, test.labels))


if __name__ == "__main__":
    main()
