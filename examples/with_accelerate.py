"""Train with Accelerate: a loop over rounds with the devices, processes and checkpoints of Accelerate.

pip install accelerate "udmlss[demo]"
accelerate launch examples/with_accelerate.py
accelerate launch examples/with_accelerate.py --folder run        # the same command resumes an interrupted training
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pytorch_metric_learning import losses, miners
from torch import nn
from torchvision.transforms import v2

from udmlss import (
    ClusterPseudoLabeler,
    EmbeddingModel,
    Rounds,
    UDMLSSLoss,
    evaluate,
    keep_freed_memory,
    parameter_groups,
)
from udmlss.data import glyphs
from udmlss.distributed import gather, synchronized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="number of rounds (default: 4)")
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps per round (default: 75)")
    parser.add_argument("--folder", type=Path, help="folder of a checkpoint after every round (default: none)")
    args = parser.parse_args()
    keep_freed_memory()

    accelerator = Accelerator()
    set_seed(0)
    trunk = nn.Sequential(
        *[nn.Conv2d(1, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()],
        *[nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(4), nn.Flatten()],
    )
    model = EmbeddingModel(trunk, nn.Linear(2048, 128)).to(accelerator.device)
    augment = v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=20)
    train, plain, test = glyphs("train", transform=augment), glyphs("train"), glyphs("test")
    rounds = Rounds(  # takes the bare model, and distributes the batches itself
        model,
        train,
        ClusterPseudoLabeler(500),
        cluster_images=plain,
        cluster_on="embeddings",
        max_steps=args.rounds * args.steps,
        relabel_every=args.steps,
    )
    criterion = UDMLSSLoss(losses.MultiSimilarityLoss(2, 40, 0.5), miner=miners.MultiSimilarityMiner(0.1))
    optimizer = torch.optim.AdamW(parameter_groups(model, criterion, trunk_lr=1e-3))
    parallel, optimizer = accelerator.prepare(model, optimizer)  # no dataloader
    accelerator.register_for_checkpointing(rounds)
    if args.folder is not None and args.folder.exists():
        accelerator.load_state(args.folder)

    parallel.train()
    for round in rounds:
        criterion.start_round(round.pseudo_labels)
        for images, labels in synchronized(round):
            with accelerator.autocast():
                embeddings = parallel(images)
            loss = criterion(gather(embeddings), gather(labels))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"round {round.number}: loss {loss.item():.3f}, {round.pseudo_labels}")
        if args.folder is not None:
            rounds.end_round()  # a training that resumes starts with the next round
            accelerator.save_state(args.folder)
    if accelerator.is_main_process:
        print(evaluate(model, test, test.labels))


if __name__ == "__main__":
    main()
