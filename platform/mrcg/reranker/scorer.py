"""A trained reranker, ready to score query graphs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from mrcg.reranker.model import Reranker
from mrcg.reranker.spec import WEIGHTS, read_spec
from mrcg.store import Artefact


class Scorer:
    """Scores query graphs. One instance belongs to one thread at a time."""

    def __init__(self, reranker: Reranker, device: str = "cpu") -> None:
        self.reranker = reranker.to(device).eval()
        self.device = device

    @classmethod
    def open(cls, artefact: Artefact, device: str = "cpu", encoder_fingerprint: str | None = None) -> Scorer:
        """Load a version of kind ``rerankers``; every file is hashed as it is read.

        Args:
            artefact: the version.
            device: where it scores.
            encoder_fingerprint: of the encoder whose embeddings it is to score; None does not ask.

        Raises:
            IntegrityError: a file is not the one that was published.
            WeightsError: it was trained on another encoder's embeddings, or written by another version of MRCG.
        """
        reranker = Reranker(read_spec(artefact, encoder_fingerprint))
        reranker.load_state_dict(safetensors.torch.load(artefact.read_bytes(WEIGHTS)))
        return cls(reranker, device)

    def score(
        self,
        queries_bd: npt.NDArray[np.float32],
        neighbours_bnd: npt.NDArray[np.float16],
        mask_bn: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.float32]:
        """Scores in [0, 1] of the neighbours of each query, -1 where there is none: (b, n)."""
        with torch.inference_mode():
            mask = torch.from_numpy(mask_bn).to(self.device)
            graph = self.reranker.graphs(
                torch.from_numpy(queries_bd).to(self.device), torch.from_numpy(neighbours_bnd).to(self.device), mask
            )
            scores = torch.where(mask, torch.sigmoid(self.reranker(graph)), -1.0)
        out: npt.NDArray[np.float32] = scores.cpu().numpy()
        return out


class Reranking:
    """Scores the neighbours of several queries at once, padded to one length."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def rerank(
        self, embeddings_bd: npt.NDArray[np.float32], neighbours: list[npt.NDArray[np.float16]]
    ) -> list[npt.NDArray[np.float32]]:
        """(b, d) queries and b arrays (n_i, d) -> b arrays (n_i,) of scores in [0, 1]."""
        longest = max(len(vectors) for vectors in neighbours)
        padded = np.zeros((len(neighbours), longest, embeddings_bd.shape[1]), dtype=np.float16)
        mask = np.zeros((len(neighbours), longest), dtype=bool)
        for place, vectors in enumerate(neighbours):
            padded[place, : len(vectors)] = vectors
            mask[place, : len(vectors)] = True
        scores = self.scorer.score(embeddings_bd, padded, mask)
        return [row[: len(vectors)] for row, vectors in zip(scores, neighbours, strict=True)]
