"""Between what gRPC carries and what the library knows. Their fields have the same names."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine
from mrcg.errors import UsageError
from mrcg_serve.requests import MOST_SCANS, SearchBatchRequest, SearchRequest
from mrcg_serve.rpc import retrieval_pb2 as rpc

#: Fields of a hit that may be unknown: not set over gRPC, null in JSON.
_UNKNOWN = dict.fromkeys(("label", "plane", "sequence", "site", "score"))


def search_from_proto(request: rpc.SearchRequest) -> SearchRequest:
    """One search.

    Raises:
        UsageError: neither image, image_id nor sent is given.
        ValidationError: a field is wrong.
    """
    params = _params(request)
    match request.WhichOneof("subject"):
        case "image":
            return SearchRequest(request.image, params)
        case "image_id":
            return SearchRequest(ImageIdQuery(request.image_id), params)
        case "sent":
            return SearchRequest(
                EmbeddingQuery(embedding=tuple(request.sent.embedding), encoder=request.sent.encoder), params
            )
        case _:
            raise UsageError("give image, image_id, or sent (an embedding with its encoder)")


def batch_from_proto(request: rpc.SearchBatchRequest) -> SearchBatchRequest:
    """Many searches.

    Raises:
        UsageError: no scan is given, or too many.
        ValidationError: a field is wrong.
    """
    if not 1 <= len(request.images) <= MOST_SCANS:
        raise UsageError(f"{len(request.images)} images: give 1 to {MOST_SCANS}")
    return SearchBatchRequest(tuple(request.images), _params(request))


def _params(request: rpc.SearchRequest | rpc.SearchBatchRequest) -> SearchParams:
    return SearchParams.model_validate(_fields(request.wanted))


def answer_to_proto(answer: Answer) -> rpc.SearchAnswer:
    """An answer for gRPC."""
    message = rpc.SearchAnswer()
    ParseDict(_plain(answer), message)
    return message


def line_to_proto(line: BatchLine) -> rpc.BatchLine:
    """A line of a batch for gRPC."""
    fields = line.model_dump(exclude_none=True, exclude={"answer"})
    if line.answer is not None:
        fields["answer"] = _plain(line.answer)
    message = rpc.BatchLine()
    ParseDict(fields, message)
    return message


def answer_from_proto(message: rpc.SearchAnswer) -> Answer:
    """An answer that came over gRPC."""
    fields = _fields(message, whole=True)
    fields["hits"] = [{**_UNKNOWN, **hit} for hit in fields["hits"]]
    if "explanation" in fields:
        fields["explanation"]["weights"] = [row["values"] for row in fields["explanation"]["weights"]]
    return Answer.model_validate(fields)


def _plain(answer: Answer) -> dict[str, Any]:
    fields = answer.model_dump(exclude_none=True)
    if answer.explanation is not None:
        # A message has no lists of lists.
        fields["explanation"]["weights"] = [{"values": row} for row in answer.explanation.weights]
    return fields


def _fields(message: Message, whole: bool = False) -> dict[str, Any]:
    fields: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=whole
    )
    return fields
