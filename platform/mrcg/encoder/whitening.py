"""Whitening: the trained part in fewer numbers, which weigh nearly the same (docs/method.md#whitening).

The similarity branch ends in a linear layer, so whitening is folded into its weights: a whitened encoder is an encoder
with a narrower last layer, and nothing that reads it has to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrcg.encoder.spec import EncoderSpec
from mrcg.encoder.vector_statistics import principal_components, spread_of

#: The last layer of the similarity branch.
LAYER = "branches.similarity"
#: Share of the mean variance of the components that is added to that of each, so that faint ones do not become noise.
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
        vectors_nd: (n, d) embeddings; more of them than components, or the last axis would be arbitrary.
        components: principal components that are kept, at most d.
    """
    assert len(vectors_nd) > components <= vectors_nd.shape[1], (vectors_nd.shape, components)
    mean, variances, axes = principal_components(vectors_nd, components)
    smoothed = variances + SMOOTHING * variances.mean()
    # Without any variance, all embeddings are equal, and stay so.
    axes = axes / np.sqrt(np.where(smoothed > 0, smoothed, 1.0))
    before, after = spread_of(vectors_nd), spread_of((vectors_nd - mean) @ axes)
    return Whitening(mean, axes * (before / after if after > 0 else 1.0))


def folded(
    spec: EncoderSpec, weights: Mapping[str, Tensor], whitening: Whitening
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """Return an encoder whose embeddings are the whitened ones: its architecture and its weights, on the CPU."""
    weight, bias = (weights[f"{LAYER}.{part}"].double().numpy() for part in ("weight", "bias"))
    changed = {
        f"{LAYER}.weight": torch.from_numpy(whitening.axes_dc.T @ weight).float(),
        f"{LAYER}.bias": torch.from_numpy(whitening(bias[None])[0]).float(),
    }
    return spec.model_copy(update={"embedding_dim": len(changed[f"{LAYER}.bias"])}), {**weights, **changed}
