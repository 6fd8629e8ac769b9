"""Search a service or a store for one image, and draw a picture of the answer."""

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
from mrcg.cli import console
from mrcg.config.settings import IngestSettings, ReadSettings
from mrcg.errors import UsageError
from mrcg.imaging.contact_sheet import Panel, PanelRow, retrieval_picture
from mrcg.imaging.slices import Grey
from mrcg.retrieval.preprocessing import Decoder

#: Maximum number of hits in a picture.
MAX_SHOWN = 10
#: Timeout for decoding the query for the picture, in seconds.
DECODE_SECONDS = 60.0


@dataclass(frozen=True)
class QueryResult:
    """An answer, and the pixels of the hits in the picture.

    Attributes:
        answer: of the service or the store.
        pixels: (height, width) grey levels by image id; empty without a picture.
    """

    answer: Answer
    pixels: Mapping[str, Grey]


def search_params(
    k: int, rerank: bool, group_by: str, values: Sequence[Sequence[str] | None], years: str | None
) -> SearchParams:
    """Return the search parameters for command-line options.

    Args:
        k: number of hits.
        rerank: order the hits by the reranker.
        group_by: none, patient or study.
        values: filter values of label, site, sequence and plane, in this order; None or empty does not filter.
        years: a year, or a range such as 2010-2020; None does not filter.

    Raises:
        UsageError: ``group_by`` or ``years`` is invalid; the message names the option.
    """
    label, site, sequence, plane = (tuple(column or ()) for column in values)
    if group_by not in get_args(GroupBy):
        raise UsageError(f"--group-by {group_by}: must be one of {', '.join(get_args(GroupBy))}")
    span = None
    if years is not None:
        match = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", years)
        if match is None:
            raise UsageError(f"--years {years}: write a year (2015) or a range (2010-2020)")
        span = (int(match[1]), int(match[2] or match[1]))
    filters = Filters(label=label, site=site, sequence=sequence, plane=plane, years=span)
    return SearchParams(k=k, rerank=rerank, group_by=cast(GroupBy, group_by), filters=filters)


def search_service(url: str, image: bytes, params: SearchParams, pictures: bool) -> QueryResult:
    """Search a running service; with ``pictures``, also fetch previews of the first hits.

    Raises:
        ServiceError: the service cannot be reached, or its answer cannot be read.
        MrcgError: the service rejected the call.
    """
    with Client(url) as client:
        answer = client.search(image, params)
        previews = {hit.image_id: client.preview(hit.image_id) for hit in _shown(answer, pictures)}
    return QueryResult(answer, {k: np.asarray(Image.open(io.BytesIO(v)).convert("L")) for k, v in previews.items()})


def search_store(url: str, image: bytes, params: SearchParams, pictures: bool) -> QueryResult:
    """Search the current release of a store in this process; with ``pictures``, also read the pixels of the first hits.

    Raises:
        NotFoundError: the store has no release.
        ImageError: the image cannot be used.
        UsageError: k is out of range.
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
    return answer.hits[:MAX_SHOWN] if pictures else []


def result_picture(image: bytes, result: QueryResult) -> bytes:
    """Draw the query and its hits, best first, as PNG; frames are neutral, because relevance is unknown."""
    answer = result.answer
    hits = [
        Panel(
            result.pixels[hit.image_id],
            hit.label or "unlabelled",
            _caption(hit),
        )
        for hit in _shown(answer, True)
    ]
    query = Panel(Decoder(ReadSettings(), DECODE_SECONDS, IngestSettings().reader_bytes)(image), "query")
    return retrieval_picture([PanelRow(query, hits)], f"Release {answer.release}, {console.ORDERS[answer.order]}")


def _caption(hit: Hit) -> str:
    """Say how like the query a hit is, and how likely it is of its class, as far as the release knows."""
    like = f"distance {hit.distance:.1f}" if hit.similarity is None else f"similarity {hit.similarity:.2f}"
    if hit.score is None:
        return like
    return f"{like}, {f'score {hit.score:.2f}' if hit.probability is None else f'probability {hit.probability:.2f}'}"
