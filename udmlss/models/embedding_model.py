"""A trunk and an embedder as one model."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Subset

from udmlss._checks import as_features, check_integer, check_module, type_error
from udmlss._torch import at_least_float32, device_of, to_dtype
from udmlss.backbones import Backbone
from udmlss.dataset import IndexedImages
from udmlss.inference import InferenceOptions, embed
from udmlss.models.hub import local_folder, upload_model
from udmlss.models.pca import embedder_from_features
from udmlss.models.saved_model import read_model
from udmlss.types import Images, Precision

_EMBEDDING_SIZE = 512  # the published dimension


class EmbeddingModel(nn.Module):
    """A trunk that computes features from images, and an embedder that computes unit-length embeddings from features.

    Args:
        trunk: Module from images (b, c, h, w) to features (b, f): a backbone without its classifier. If it returns an
            object with several outputs, as models of Hugging Face do, its `pooler_output` is used.
        embedder: Module from features (b, f) to embeddings (b, d) of any length, often `nn.Linear(f, 512)`.

    Raises:
        TypeError: `trunk` or `embedder` is not a module.

    Example:
        >>> model = EmbeddingModel(nn.Flatten(), nn.Linear(192, 64))
        >>> model(torch.rand(2, 3, 8, 8)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, trunk: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        check_module("trunk", trunk)
        check_module("embedder", embedder)
        self.trunk = trunk
        self.embedder = embedder

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of images.

        Raises:
            ValueError: The trunk's features are not of shape (b, f).
            TypeError: The trunk or the embedder does not return a tensor.
        """
        return self.embed_features(as_features(self.trunk(images)))

    def embed_features(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b d"]:
        """Return the unit-length embeddings of the trunk's features, in float32 or float64.

        Features are converted to the data type of the embedder.

        Raises:
            ValueError: The features are not of shape (b, f).
            TypeError: The features are not a tensor, or the embedder does not return one.
        """
        embeddings = self.embedder(to_dtype(as_features(features), self.embedder))
        if not isinstance(embeddings, Tensor):
            remedy = "Wrap it in an nn.Module whose `forward` returns one tensor"
            raise type_error("The embedder must return a tensor (b, d)", type(embeddings).__name__, remedy)
        return functional.normalize(at_least_float32(embeddings))

    @classmethod
    def from_trunk(
        cls,
        trunk: nn.Module,
        images: Images,
        embedding_size: int | None = None,
        *,
        batch_size: int = 128,
        num_workers: int | None = None,
        precision: Precision = "float32",
        progress: bool = True,
    ) -> "EmbeddingModel":
        """Build a model of a pretrained trunk, with an embedder that is initialized from the features of images.

        All images are embedded once, and the embedder is that of `embedder_from_features`. About 10,000 images are
        enough: of a larger dataset, pass a `torch.utils.data.Subset`.

        Args:
            trunk: Pretrained module from images (b, c, h, w) to features (b, f): a backbone without its classifier.
            images: Images with test-time transforms, such as the training images: any dataset that `embed` accepts.
            embedding_size: Dimension d of the embeddings, at most f. None means 512, or f if f is smaller.
            batch_size: Number of images per forward pass.
            num_workers: As for `embed`.
            precision: "bfloat16" and "float16" embed in mixed precision.
            progress: Whether to show a progress bar.

        Returns:
            The model, on the device of the trunk.

        Raises:
            ValueError: There are no images, their features are all equal or not finite, or a setting is out of range.
            TypeError: `images` is not a map-style dataset, or the trunk does not return a tensor.

        Example:
            >>> images = torch.rand(20, 3, 8, 8)
            >>> model = EmbeddingModel.from_trunk(nn.Flatten(), images, 64, progress=False)
            >>> model(images).shape
            torch.Size([20, 64])
        """
        InferenceOptions(num_workers, precision, batch_size)  # checks the settings
        embed_part = partial(embed, cls(trunk, nn.Identity()), output="features", precision=precision)
        if embedding_size is not None:
            check_integer("embedding_size", embedding_size, 1)
            first = embed_part(Subset(IndexedImages(images), [0]))  # so that a size above f is an error before the work
            check_integer("embedding_size", embedding_size, 1, first.shape[1])
        features = embed_part(images, batch_size=batch_size, num_workers=num_workers, progress=progress)
        size = min(_EMBEDDING_SIZE, features.shape[1]) if embedding_size is None else embedding_size
        return cls(trunk, embedder_from_features(features, size).to(device_of(trunk)))

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        trunk: nn.Module | None = None,
        embedder: nn.Module | None = None,
        revision: str | None = None,
    ) -> "EmbeddingModel":
        """Load a saved model from a folder, or from a repository of the Hugging Face Hub.

        `load_model` also returns the backbone, whose transforms prepare pictures for the model. For a repository, call
        it with the folder that `huggingface_hub.snapshot_download` returns.

        Args:
            name_or_folder: A folder that `save_model` has written, or the name of a repository, such as "user/birds".
                An existing folder takes precedence.
            trunk: As in `load_model`.
            embedder: As in `load_model`.
            revision: Branch, tag or commit of the repository. None means the main branch.

        Returns:
            The model, in evaluation mode and on the device of `trunk` or else on the CPU.

        Raises:
            ValueError: There is no folder or repository of this name, or an error of `load_model`.
            ImportError: huggingface_hub or the package of the backbone is needed and is not installed.
            ConnectionError: The Hub cannot be reached.

        Example:
            >>> model = EmbeddingModel.from_pretrained("user/birds")  # doctest: +SKIP
        """
        return cls(*read_model(local_folder(name_or_folder, revision), trunk, embedder)[:2]).eval()

    def push_to_hub(
        self,
        repository: str,
        *,
        backbone: Backbone | None = None,
        recipe: Mapping[str, Any] | None = None,
        private: bool | None = None,
    ) -> str:
        """Save the model in a repository of the Hugging Face Hub, which is created if it does not exist.

        Log in once with `hf auth login`, or set the environment variable HF_TOKEN.

        Args:
            repository: Name of the repository, such as "user/birds".
            backbone: As in `save_model`.
            recipe: As in `save_model`.
            private: Whether a new repository is private. None leaves it to the settings of the account.

        Returns:
            The address of the repository.

        Raises:
            ValueError: The name of the repository is invalid, or an error of `save_model`.
            TypeError: The recipe cannot be written as JSON.
            ImportError: huggingface_hub is not installed.
            ConnectionError: The Hub cannot be reached or rejects the upload.

        Example:
            >>> model.push_to_hub("user/birds", backbone=backbone)  # doctest: +SKIP
        """
        return upload_model(self, repository, backbone=backbone, recipe=recipe, private=private)


def load_model(
    folder: str | os.PathLike[str], *, trunk: nn.Module | None = None, embedder: nn.Module | None = None
) -> tuple[EmbeddingModel, Backbone | None]:
    """Load a model and its backbone from a folder that `save_model` has written.

    No code in the files is run, and pretrained weights of the backbone are not downloaded.

    Args:
        folder: Path of the folder.
        trunk: Module of the same architecture as the saved trunk, whose weights are replaced. If the saved backbone
            ignores colors or orientation, pass the trunk of the backbone before `without_colors` or
            `without_orientation`. None builds the backbone that the folder names.
        embedder: Module of the same architecture as the saved embedder, whose weights are replaced. None builds it from
            its description, which holds linear layers, normalizations and activations.

    Returns:
        The model, in evaluation mode and on the device of `trunk` or else on the CPU, and the backbone, whose
        transforms prepare pictures for the model. The backbone is None if the model was saved without one.

    Raises:
        ValueError: The folder is not a saved model, a file is damaged or has a newer format, `trunk` or `embedder` must
            be passed, or the weights do not fit.
        ImportError: The package of the backbone is not installed.

    Example:
        >>> from udmlss.models import load_model
        >>> model, backbone = load_model("runs/birds")  # doctest: +SKIP
        >>> image = backbone.test_transform()(picture)  # doctest: +SKIP
    """
    trunk, embedder, backbone = read_model(Path(folder).expanduser(), trunk, embedder)
    return EmbeddingModel(trunk, embedder).eval(), backbone
