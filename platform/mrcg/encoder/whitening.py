"""Whitening: the trained part in fewer numbers, which weigh nearly the same (docs/method.md#whitening).

The similarity branch ends in a linear layer, so whitening is folded into its weights: a whitened encoder is an encoder
with a narrower last layer, and nothing that reads it has to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mrcg.encoder.model import Encoder
from mrcg.encoder.vector_statistics import principal_components, spread_of

#: Share of the mean variance that is added to each variance, so that components of hardly any do not become noise.
SMOOTHING = 0.1


@dataclass(frozen=True)
class Whitening:
    """A linear map of embeddings: ``(x - mean_d) @ axes_dc``, in float64."""

    mean_d: npt.NDArray[np.float64]
    axes_dc: npt.NDArray[np.float64]

    def __call__(self, x_nd: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """(n, d) embeddings -> (n, c) whitened ones."""
        whitened: npt.NDArray[np.float64] = (x_nd.astype(np.float64) - self.mean_d) @ self.axes_dc
        return whitened


def fit_whitening(vectors_nd: npt.NDArray[np.floating], components: int) -> Whitening:
    """Return the whitening of some embeddings, which leaves their spread as it is.

    Args:
        vectors_nd: (n, d) embeddings; at least one.
        components: principal components that are kept, at most d.
    """
    mean, variances, axes = principal_components(vectors_nd, components)
    smoothed = variances + SMOOTHING * variances.mean()
    # Without any variance, all embeddings are equal, and stay so.
    axes = axes / np.sqrt(np.where(smoothed > 0, smoothed, 1.0))
    before, after = spread_of(vectors_nd), spread_of((vectors_nd - mean) @ axes)
    return Whitening(mean, axes * (before / after if after > 0 else 1.0))


def fold(encoder: Encoder, whitening: Whitening) -> None:
    """Change an encoder in place so that its embeddings are the whitened ones."""
    layer = encoder.branches.similarity
    weight, bias = (x.detach().cpu().double().numpy() for x in (layer.weight, layer.bias))
    narrow = nn.Linear(layer.in_features, whitening.axes_dc.shape[1], device=layer.weight.device)
    with torch.no_grad():
        narrow.weight.copy_(torch.from_numpy(whitening.axes_dc.T @ weight))
        narrow.bias.copy_(torch.from_numpy(whitening(bias[None])[0]))
    encoder.branches.similarity = narrow
    encoder.spec = encoder.spec.model_copy(update={"embedding_dim": narrow.out_features})
