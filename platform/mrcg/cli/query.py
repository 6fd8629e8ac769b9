"""One question to a service or to a store, and a picture of the answer."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
from PIL import Image

from mrcg.api.client import Client
from mrcg.api.requests import Filters, GroupBy, SearchParams
from mrcg.api.responses import Answer, Hit
from mrcg.config.settings import IngestSettings, ReadSettings
from mrcg.errors import UsageError
from mrcg.imaging.contact_sheet import Panel, PanelRow, retrieval_picture
from mrcg.imaging.slices import Grey
from mrcg.retrieval.preprocessing import Decoder

SHOWN = 10
#: That a query may take to decode for its picture.
SECONDS = 60.0


@dataclass(frozen=True)
class QueryResult:
    """An answer and the pixels of the hits that a picture shows."""

    answer: Answer
    pixels: Mapping[str, Grey]


def params_of(
    k: int, rerank: bool, group_by: str, values: Sequence[Sequence[str] | None], years: str | None
) -> SearchParams:
    """What options of a command line ask for; ``values`` of label, site, sequence and plane.

    Raises:
        UsageError: names the option.
    """
    label, site, sequence, plane = (tuple(one or ()) for one in values)
    if group_by not in get_args(GroupBy):
        raise UsageError(f"--group-by {group_by}: one of {', '.join(get_args(GroupBy))}")
    span = None
    if years is not None:
        found = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", years)
        if found is None:
            raise UsageError(f"--years {years}: write 2015, or 2010-2020")
        span = (int(found[1]), int(found[2] or found[1]))
    filters = Filters(label=label, site=site, sequence=sequence, plane=plane, years=span)
    return SearchParams(k=k, rerank=rerank, group_by=cast(GroupBy, group_by), filters=filters)


def ask_service(url: str, image: bytes, params: SearchParams, pictures: bool) -> QueryResult:
    """Ask a running service; ``pictures`` also fetches the pixels of the first hits.

    Raises:
        ServiceError: it cannot be reached or refuses the call.
    """
    with Client(url) as client:
        answer = client.search(image, params)
        previews = {hit.image_id: client.preview(hit.image_id) for hit in _shown(answer, pictures)}
    return QueryResult(answer, {k: np.asarray(Image.open(io.BytesIO(v)).convert("L")) for k, v in previews.items()})


def ask_store(url: str, image: bytes, params: SearchParams, pictures: bool) -> QueryResult:
    """Search a store's current release in this process; ``pictures`` as in ``ask_service``.

    Raises:
        NotFoundError: the store has no release.
        ImageError: the image cannot be used.
    """
    from mrcg.corpus.reader import Corpus
    from mrcg.retrieval.local import LocalPipeline
    from mrcg.storage.store import Store

    store = Store(url)
    pipeline = LocalPipeline.open(store)
    answer = pipeline.search(image, params)
    if not pictures:
        return QueryResult(answer, {})
    corpus = Corpus(store.artefact("corpus", pipeline.release.corpus))
    return QueryResult(answer, {hit.image_id: corpus.image(hit.image_id) for hit in _shown(answer, pictures)})


def _shown(answer: Answer, pictures: bool) -> list[Hit]:
    return answer.hits[:SHOWN] if pictures else []


def picture_of(image: bytes, asked: QueryResult) -> bytes:
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
