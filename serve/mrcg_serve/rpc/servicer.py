"""The gateway's searches over gRPC, through Serve's gRPC proxy; the same searches as over HTTP."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

import grpc
from pydantic import ValidationError
from ray.serve.grpc_util import RayServegRPCContext

from mrcg.api.requests import EmbeddingQuery, ImageIdQuery, SearchParams
from mrcg.api.responses import Answer, BatchLine
from mrcg.errors import MrcgError
from mrcg_serve.auth import Authenticator, Peer
from mrcg_serve.problem_details import Problem, invalid, problem, problem_of
from mrcg_serve.rpc import retrieval_pb2 as rpc
from mrcg_serve.rpc.conversions import answer_to_proto, batch_from_proto, line_to_proto, search_from_proto

log = logging.getLogger(__name__)

#: The generated function that registers the service with Serve's gRPC proxy.
SERVICER = "mrcg_serve.rpc.retrieval_pb2_grpc.add_RetrievalServicer_to_server"
_STATUS = {
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


class SearchBackend(Protocol):
    """What the servicer needs of the gateway."""

    authenticator: Authenticator

    async def search(
        self,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        request_id: str | None = None,
    ) -> Answer:
        """Answer one search."""
        ...

    def search_many(self, principal: str, scans: Sequence[bytes], params: SearchParams) -> AsyncIterator[BatchLine]:
        """Answer a search for each scan."""
        ...


class RetrievalServicerMixin:
    """gRPC methods of the gateway. Serve calls them by their names in ``retrieval.proto``."""

    async def Search(  # noqa: N802
        self: SearchBackend, request: rpc.SearchRequest, grpc_context: RayServegRPCContext
    ) -> rpc.SearchAnswer:
        """Answer one search, as ``POST /v1/search`` does."""
        with _status_on_error(grpc_context):
            principal = self.authenticator.principal(_peer(grpc_context))
            search = search_from_proto(request)
            return answer_to_proto(await self.search(principal, search.subject, search.params))

    async def SearchBatch(  # noqa: N802
        self: SearchBackend, request: rpc.SearchBatchRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[rpc.BatchLine]:
        """Answer a search for each of several scans, as ``POST /v1/search:batch`` does."""
        with _status_on_error(grpc_context):
            principal = self.authenticator.principal(_peer(grpc_context))
            batch = batch_from_proto(request)
            async for line in self.search_many(principal, batch.scans, batch.params):
                yield line_to_proto(line)


def _peer(context: RayServegRPCContext) -> Peer:
    metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    return Peer.of_grpc(context.peer(), metadata)


@contextlib.contextmanager
def _status_on_error(context: RayServegRPCContext) -> Iterator[None]:
    """Set the gRPC status that fits an error, then raise it again; Serve keeps a status that is already set."""
    try:
        yield
    except MrcgError as error:
        _set_status(context, problem_of(error))
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        details = invalid(first["loc"], first["msg"])
        _set_status(context, details)
        # The text of the original error contains the value, which may be the upload.
        raise ValueError(details.detail) from None
    except Exception as error:
        log.error("request failed", exc_info=error)
        _set_status(context, problem(500, "internal", "the service failed; see its log for the reason"))
        raise


def _set_status(context: RayServegRPCContext, details: Problem) -> None:
    context.set_code(_STATUS.get(details.status, grpc.StatusCode.INTERNAL))
    # The code goes into the details: for a failed call Serve passes on status and details, but no trailing metadata.
    context.set_details(f"{details.code}: {details.detail}")
