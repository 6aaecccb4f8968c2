"""An embedder that is computed by principal component analysis."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from udmlss._checks import check_distinct, check_embeddings, check_integer, check_number, value_error
from udmlss._chunks import ColumnRange, row_slices, with_float64


class PCAEmbedder(nn.Linear):
    """A linear embedder that is fitted to features by principal component analysis, as `embedder_from_features` does.

    It can be trained like any linear layer. `udmlss.fit` recomputes it from the features of the trained trunk when
    training ends.

    Args:
        in_features: Dimension f of the features.
        out_features: Dimension d of the embeddings, at most f.
        center: Whether to subtract the mean of the features.
        power: Power of the standard deviations by which the directions are divided.

    Raises:
        ValueError: `out_features` is not in 1..f, or `power` is not in 0..1.
        TypeError: A size is not an integer.

    Example:
        >>> embedder = PCAEmbedder(192, 16).fit(torch.rand(40, 192))
        >>> embedder(torch.rand(5, 192)).shape
        torch.Size([5, 16])
    """

    def __init__(self, in_features: int, out_features: int, *, center: bool = True, power: float = 0.5) -> None:
        check_integer("in_features", in_features, 1)
        check_integer("out_features", out_features, 1, in_features)
        check_number("power", power, 0, 1)
        super().__init__(int(in_features), int(out_features))  # `save_model` writes the sizes as JSON
        self.center, self.power = bool(center), float(power)

    def fit(self, features: Float[Tensor, "n f"]) -> "PCAEmbedder":
        """Compute weight and bias from the features (n, f) of the training images.

        Returns:
            The embedder itself.

        Raises:
            ValueError: The features do not have f dimensions, are not finite, or are all equal with `center=True`.
            TypeError: The features are not a floating-point tensor.
        """
        column_range = check_embeddings(features, "features")
        if features.shape[1] != self.in_features:
            found = f"{features.shape[1]} dimensions"
            raise value_error(f"`features` must have {self.in_features} dimensions", found, "Use the same trunk")
        return self._fit(features, column_range)

    def _fit(self, features: Float[Tensor, "n f"], column_range: ColumnRange) -> "PCAEmbedder":
        rows = with_float64(features.detach())
        mean = None
        if self.center:
            check_distinct(column_range, len(features))
            mean = torch.stack([rows[part].double().sum(dim=0) for part in row_slices(rows)]).sum(dim=0) / len(rows)
        variances, directions = _eigen(_second_moments(rows, mean))
        largest = slice(self.in_features - self.out_features, None)
        scales = _scales(variances[largest].clamp(min=0), variances.mean(), self.power)
        weight = (directions[:, largest] * scales).T.flip(0)
        with torch.no_grad():
            self.weight.copy_(weight.float())
            self.bias.copy_(torch.zeros(self.out_features) if mean is None else -(weight @ mean).float())
        return self


def embedder_from_features(
    features: Float[Tensor, "n f"], embedding_size: int, *, center: bool = True, power: float = 0.5
) -> PCAEmbedder:
    """Compute an initial linear embedder from a pretrained trunk's features.

    The embedder projects features onto their principal directions. It subtracts the mean, which all features have in
    common and which therefore does not distinguish images, and divides each direction by a power of its variance, so
    that the few directions of largest variance do not decide alone which images are similar. Before the division, each
    variance is averaged with the mean of all variances, which bounds the influence of directions in which the features
    hardly differ.

    A randomly initialized embedder discards part of what a pretrained trunk has learned, and training it with the
    learning rate of new layers discards more. Train this embedder with the learning rate of the trunk.

    Args:
        features: The trunk's features (n, f) of the training images, in memory or mapped from a file.
        embedding_size: Dimension d of the embeddings, at most f.
        center: Whether to subtract the mean of the features. False projects features of unit length; with `power=0`
            this is the linear embedder that best preserves their cosine similarities.
        power: Power of the standard deviations by which the directions are divided: 0 does not divide, 1 whitens, and
            the default of 0.5 is between the two.

    Returns:
        A linear layer from features (b, f) to embeddings (b, d), on the device of the features. Its rows are
        orthogonal. With `power=0` they have length 1; otherwise they are scaled so that the embeddings vary about
        as much as the features do.

    Raises:
        ValueError: `embedding_size` is not in 1..f, `power` is not in 0..1, the features are not a finite 2-D tensor,
            or are all equal with `center=True`.
        TypeError: The features are not a floating-point tensor, or `embedding_size` is not an integer.

    Example:
        >>> trunk = nn.Flatten()
        >>> images = torch.rand(40, 3, 8, 8)
        >>> model = EmbeddingModel(trunk, embedder_from_features(trunk(images), 16))
        >>> model(images).shape
        torch.Size([40, 16])

    References:
        The approximation of one matrix by another of lower rank. Eckart, Young. 1936.
        https://doi.org/10.1007/BF02288367

        Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening. Jegou, Chum. 2012.
        https://doi.org/10.1007/978-3-642-33709-3_55

        A well-conditioned estimator for large-dimensional covariance matrices. Ledoit, Wolf. 2004.
        https://doi.org/10.1016/S0047-259X(03)00096-4. The paper estimates the weight of the mean variance, which is
        one half here.
    """
    column_range = check_embeddings(features, "features")
    check_integer("embedding_size", embedding_size, 1, features.shape[1])
    embedder = PCAEmbedder(features.shape[1], embedding_size, center=center, power=power).to(features.device)
    return embedder._fit(features, column_range)  # noqa: SLF001 (the features were checked)


def _second_moments(rows: Float[Tensor, "n f"], mean: Float64[Tensor, " f"] | None) -> Float64[Tensor, "f f"]:
    """Return the covariance of rows with this mean, or the mean product of rows of unit length if it is None."""
    size = rows.shape[1]
    total = rows.new_zeros(size, size, dtype=torch.float64)
    for part in row_slices(rows):
        chunk = rows[part].double()
        chunk = functional.normalize(chunk) if mean is None else chunk - mean
        total += chunk.T @ chunk
    return total / len(rows)


def _eigen(moments: Float64[Tensor, "f f"]) -> tuple[Float64[Tensor, " f"], Float64[Tensor, "f f"]]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix in ascending order of eigenvalues."""
    try:
        values, vectors = torch.linalg.eigh(moments)
    except RuntimeError:  # LAPACK may not converge on matrices of very low rank
        shift = 1e-12 * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
        values, vectors = torch.linalg.eigh(moments + shift)
    return values, vectors


def _scales(variances: Float64[Tensor, " d"], mean: Float64[Tensor, ""], power: float) -> Float64[Tensor, " d"]:
    """Return the factors of directions with these variances, for the mean variance of all directions."""
    smoothed = variances / mean.clamp(min=torch.finfo(torch.float64).tiny) + 1
    scales = smoothed.pow(-power / 2)
    return scales * (smoothed.sum() / (smoothed * scales.square()).sum()).sqrt()
