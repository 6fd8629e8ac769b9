"""One question to a service or to a store, and a picture of the answer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mrcg.client import Client
from mrcg.config import IngestSettings, ReadSettings
from mrcg.evaluation.picture import Panel, PanelRow, retrieval_picture
from mrcg.imaging.slices import Grey
from mrcg.search import Answer, Hit
from mrcg.serving import Decoder

SHOWN = 10
#: That a query may take to decode for its picture.
SECONDS = 60.0


@dataclass(frozen=True)
class Asked:
    """An answer and the pixels of the hits that a picture shows."""

    answer: Answer
    pixels: Mapping[str, Grey]


def ask_service(url: str, image: bytes, k: int, rerank: bool, pictures: bool) -> Asked:
    """Ask a running service; ``pictures`` also fetches the pixels of the first hits.

    Raises:
        ServiceError: it cannot be reached or refuses the call.
    """
    with Client(url) as client:
        answer = client.search(image, k, rerank)
        previews = {hit.image_id: client.preview(hit.image_id) for hit in _shown(answer, pictures)}
    return Asked(answer, {k: np.asarray(Image.open(io.BytesIO(v)).convert("L")) for k, v in previews.items()})


def ask_store(url: str, image: bytes, k: int, rerank: bool, pictures: bool) -> Asked:
    """Search a store's current release in this process; ``pictures`` as in ``ask_service``.

    Raises:
        NotFoundError: the store has no release.
        ImageError: the image cannot be used.
    """
    from mrcg.corpus import Corpus
    from mrcg.pipeline import LocalPipeline
    from mrcg.store import Store

    store = Store(url)
    pipeline = LocalPipeline.open(store)
    answer = pipeline.search(image, k, rerank)
    if not pictures:
        return Asked(answer, {})
    corpus = Corpus(store.artefact("corpus", pipeline.release.corpus))
    return Asked(answer, {hit.image_id: corpus.image(hit.image_id) for hit in _shown(answer, pictures)})


def _shown(answer: Answer, pictures: bool) -> list[Hit]:
    return answer.hits[:SHOWN] if pictures else []


def picture_of(image: bytes, asked: Asked) -> bytes:
    """PNG: the query on the left, its hits best first. Frames are neutral: nobody knows what is right."""
    answer = asked.answer
    hits = [
        Panel(
            asked.pixels[hit.image_id],
            hit.label or "unlabelled",
            f"distance {hit.distance:.1f}" if hit.score is None else f"score {hit.score:.2f}, ANN rank {hit.ann_rank}",
        )
        for hit in _shown(answer, True)
    ]
    query = Panel(Decoder(ReadSettings(), SECONDS, IngestSettings().reader_bytes)(image), "query")
    order = "reranked" if answer.reranked else "ANN order"
    return retrieval_picture([PanelRow(query, hits)], f"Release {answer.release}, {order}")
