"""Export of a model for programs without udmlss: ONNX and torch.export."""

import os
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from udmlss._checks import check_choice, import_optional, type_error, value_error
from udmlss._files import replace_file
from udmlss._torch import check_weights, trunk_of
from udmlss.backbones import Backbone

Pixels = Literal["uint8", "float32"]

_TOLERANCE = 1e-4  # between rows of the exported program and of the model


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], *, backbone: Backbone, pixels: Pixels = "uint8"
) -> None:
    """Export a model as an ONNX file, from pictures to unit-length embeddings.

    The file has one input `images` (n, 3, image_size, image_size), which are RGB pictures, and one output `embeddings`
    (n, d). It normalizes the pixels itself; resizing and cropping are left to the caller. The number n of pictures may
    differ from call to call. Before the file gets its name, onnxruntime computes the embeddings of random pictures,
    which must equal those of the model.

    Args:
        model: An `EmbeddingModel`, compiled or not, which is not changed.
        path: Path of the file, which is replaced.
        backbone: Image size and normalization of the model.
        pixels: "uint8" for pixels in 0..255, or "float32" for pixels in 0..1.

    Raises:
        ValueError: The model has parameters without values, or the exported program computes other embeddings.
        TypeError: `model` has no trunk, or `backbone` is not a `Backbone`.
        ImportError: A package of `udmlss[onnx]` is not installed.
        OSError: The file cannot be written. An existing file is unchanged.

    Example:
        >>> from udmlss.models import export_onnx
        >>> export_onnx(model, "birds.onnx", backbone=backbone)  # doctest: +SKIP
    """
    for package in ("onnx", "onnxscript"):  # of `torch.onnx.export`
        import_optional(package, "Export to ONNX", '"udmlss[onnx]"')
    runtime = import_optional("onnxruntime", "Export to ONNX", '"udmlss[onnx]"')
    embedder, images = _PictureEmbedder(model, backbone), _random_pictures(backbone, pixels)
    program = torch.export.export(embedder, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    with replace_file(Path(path).expanduser()) as part:
        torch.onnx.export(
            program,
            f=part,
            input_names=["images"],
            output_names=["embeddings"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = runtime.InferenceSession(part, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": images.numpy()})
        _check_equal(torch.from_numpy(found), embedder(images))


def export_torch(
    model: nn.Module, path: str | os.PathLike[str], *, backbone: Backbone, pixels: Pixels = "uint8"
) -> None:
    """Export a model with `torch.export`, from pictures to unit-length embeddings.

    `torch.export.load(path).module()` is then a function from RGB pictures (n, 3, image_size, image_size) to embeddings
    (n, d), which needs PyTorch but not udmlss. It normalizes the pixels itself; resizing and cropping are left to the
    caller.

    Args:
        model: An `EmbeddingModel`, compiled or not, which is not changed.
        path: Path of the file, which usually ends in .pt2 and is replaced.
        backbone: Image size and normalization of the model.
        pixels: "uint8" for pixels in 0..255, or "float32" for pixels in 0..1.

    Raises:
        ValueError: The model has parameters without values, or the exported program computes other embeddings.
        TypeError: `model` has no trunk, or `backbone` is not a `Backbone`.
        OSError: The file cannot be written. An existing file is unchanged.

    Example:
        >>> from udmlss.models import export_torch
        >>> export_torch(model, "birds.pt2", backbone=backbone)  # doctest: +SKIP
    """
    embedder, images = _PictureEmbedder(model, backbone), _random_pictures(backbone, pixels)
    program = torch.export.export(embedder, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    _check_equal(program.module()(images), embedder(images))
    content = BytesIO()
    torch.export.save(program, content)  # to a file, PyTorch ends the process if the disk is full
    with replace_file(Path(path).expanduser()) as part:
        part.write_bytes(content.getbuffer())


class _PictureEmbedder(nn.Module):
    """A copy of a model on the CPU that also normalizes pixels."""

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            remedy = "Pass the backbone of `load_backbone` or `load_model`, or create a Backbone"
            raise type_error("`backbone` must be a Backbone", type(backbone).__name__, remedy)
        trunk_of(model)  # checks the model
        check_weights(model)
        model = getattr(model, "_orig_mod", model)  # of a compiled model
        self.model = deepcopy(model).to("cpu", torch.float32).to(memory_format=torch.contiguous_format)
        self.mean = nn.Buffer(torch.tensor(backbone.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(backbone.std).view(3, 1, 1))
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        embeddings: Tensor = self.model((images - self.mean) / self.std)
        return embeddings


def _random_pictures(backbone: Backbone, pixels: Pixels) -> Float[Tensor, "b 3 h w"] | UInt8[Tensor, "b 3 h w"]:
    check_choice("pixels", pixels, ("uint8", "float32"))
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, backbone.image_size, backbone.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return images if pixels == "uint8" else images.float() / 255


def _check_equal(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE:
        rule = f"The exported program must compute the embeddings of the model up to {_TOLERANCE}"
        raise value_error(rule, f"a difference of {difference}", "Report the trunk that causes this as an issue")
