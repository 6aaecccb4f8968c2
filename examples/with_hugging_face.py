"""Train a model of `transformers` on a dataset of `datasets`, and store the embeddings as a column.

pip install transformers datasets
python examples/with_hugging_face.py photos/                                  # a folder of images
python examples/with_hugging_face.py photos/ --model google/vit-base-patch16-224-in21k
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModel

from udmlss import BestWeights, EmbeddingModel, embed, fit, keep_freed_memory
from udmlss.backbones import Backbone
from udmlss.models import save_model


def apply(transform: Callable[[Any], torch.Tensor], batch: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
    return {"image": [transform(image.convert("RGB")) for image in batch["image"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("--model", default="facebook/dinov2-small", help="name on the hub, or a folder")
    parser.add_argument("--image-size", type=int, default=224, help="side of the crops in pixels (default: 224)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    parser.add_argument("--relabel-every", type=int, default=75, help="optimizer steps per round (default: 75)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument("--out", default="run", help="folder for the model and the images with embeddings")
    args = parser.parse_args()
    keep_freed_memory()

    photos = load_dataset("imagefolder", data_dir=args.folder, split="train")  # or load_dataset("user/name", ...)
    processor = AutoImageProcessor.from_pretrained(args.model)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)  # those of the pretrained weights
    torch.manual_seed(0)
    trunk = AutoModel.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    backbone = Backbone(args.model, trunk, args.image_size, mean, std)
    transforms = backbone.train_transform(), backbone.test_transform()
    train, plain = (photos.with_transform(partial(apply, transform)) for transform in transforms)

    model = EmbeddingModel.from_trunk(trunk, plain, num_workers=args.num_workers)
    result = fit(
        model,
        train,
        cluster_images=plain,
        max_steps=args.steps,
        relabel_every=args.relabel_every,
        num_workers=args.num_workers,
        callbacks=BestWeights(),
    )
    print(f"label-free score: {result.start.score:.3f} before training, {result.label_free.score:.3f} after")

    embeddings = embed(model, plain, num_workers=args.num_workers)
    photos.add_column("embedding", list(embeddings.numpy())).save_to_disk(f"{args.out}/images")
    save_model(model, f"{args.out}/model", backbone=backbone)  # load_model(folder, trunk=...) loads it
    print(f"saved {len(photos)} images with embeddings of {embeddings.shape[1]} dimensions in {args.out}")


if __name__ == "__main__":
    main()
