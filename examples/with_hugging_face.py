"""Train a model of Hugging Face on images of Hugging Face: from `transformers` and `datasets` to embeddings.

pip install transformers datasets
python examples/with_hugging_face.py photos/                                  # a folder of images
python examples/with_hugging_face.py photos/ --model google/vit-base-patch16-224-in21k
"""

import argparse
from functools import partial
from typing import Any

import torch
from datasets import load_dataset
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModel

from udmlss import BestWeights, EmbeddingModel, embed, fit


def apply(transform: v2.Transform, batch: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
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

    photos = load_dataset("imagefolder", data_dir=args.folder, split="train")  # or load_dataset("user/name", ...)
    processor = AutoImageProcessor.from_pretrained(args.model)
    size = args.image_size
    to_tensor = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(processor.image_mean, processor.image_std),  # those of the pretrained weights
    ]
    augment = v2.Compose([v2.RandomResizedCrop(size, (0.2, 1)), v2.RandomHorizontalFlip(), *to_tensor])
    resize = v2.Compose([v2.Resize(size * 8 // 7), v2.CenterCrop(size), *to_tensor])
    train, plain = (photos.with_transform(partial(apply, transform)) for transform in (augment, resize))

    torch.manual_seed(0)
    trunk = AutoModel.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
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
    photos.add_column("embedding", list(embeddings.cpu().numpy())).save_to_disk(f"{args.out}/images")
    torch.save(model.state_dict(), f"{args.out}/model.pt")
    print(f"saved {len(photos)} images with embeddings of {embeddings.shape[1]} dimensions in {args.out}")


if __name__ == "__main__":
    main()
