"""Convert between gRPC messages and library types. Their fields have the same names."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine
from mrcg.errors import UsageError
from mrcg_serve.requests import MAX_SCANS, SearchBatchRequest, SearchRequest
from mrcg_serve.rpc import retrieval_pb2 as rpc

#: Fields of a hit that may be unknown: unset in gRPC, null in JSON.
_UNKNOWN_FIELDS = dict.fromkeys(
    ("label", "plane", "sequence", "site", "score", "probability", "similarity", "score_rank")
)


def search_from_proto(request: rpc.SearchRequest) -> SearchRequest:
    """Return the search of a gRPC request.

    Raises:
        UsageError: the request has no image, image_id or sent.
        ValidationError: a field is invalid.
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
    """Return the searches of a gRPC batch request.

    Raises:
        UsageError: the request has no images, or too many.
        ValidationError: a field is invalid.
    """
    if not 1 <= len(request.images) <= MAX_SCANS:
        raise UsageError(f"{len(request.images)} images: give 1 to {MAX_SCANS}")
    return SearchBatchRequest(tuple(request.images), _params(request))


def _params(request: rpc.SearchRequest | rpc.SearchBatchRequest) -> SearchParams:
    return SearchParams.model_validate(_fields(request.wanted))


def answer_to_proto(answer: Answer) -> rpc.SearchAnswer:
    """Convert an answer to its gRPC message."""
    message = rpc.SearchAnswer()
    ParseDict(_answer_fields(answer), message)
    return message


def line_to_proto(line: BatchLine) -> rpc.BatchLine:
    """Convert a line of a batch to its gRPC message."""
    fields = line.model_dump(exclude_none=True, exclude={"answer"})
    if line.answer is not None:
        fields["answer"] = _answer_fields(line.answer)
    message = rpc.BatchLine()
    ParseDict(fields, message)
    return message


def answer_from_proto(message: rpc.SearchAnswer) -> Answer:
    """Convert a gRPC message to an answer."""
    fields = _fields(message, with_defaults=True)
    fields["hits"] = [{**_UNKNOWN_FIELDS, **hit} for hit in fields["hits"]]
    fields.setdefault("probability_withheld", None)
    fields["order"] = fields["order"] or "score"  # unset by services of earlier versions
    if "explanation" in fields:
        fields["explanation"]["weights"] = [row["values"] for row in fields["explanation"]["weights"]]
    return Answer.model_validate(fields)


def _answer_fields(answer: Answer) -> dict[str, Any]:
    fields = answer.model_dump(exclude_none=True)
    if answer.explanation is not None:
        # Protobuf has no lists of lists.
        fields["explanation"]["weights"] = [{"values": row} for row in answer.explanation.weights]
    return fields


def _fields(message: Message, with_defaults: bool = False) -> dict[str, Any]:
    fields: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=with_defaults
    )
    return fields
