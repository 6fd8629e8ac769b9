"""The gateway's searches over gRPC, through Serve's own proxy: the same as over HTTP (``rpc/retrieval.proto``)."""

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

#: Registers what Serve's proxy takes.
SERVICER = "mrcg_serve.rpc.retrieval_pb2_grpc.add_RetrievalServicer_to_server"
_STATUS = {
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Searches(Protocol):
    """What answers: the gateway."""

    authenticator: Authenticator

    async def search(
        self,
        principal: str,
        subject: bytes | ImageIdQuery | EmbeddingQuery,
        params: SearchParams,
        named: str | None = None,
    ) -> Answer:
        """One search."""
        ...

    def search_many(self, principal: str, scans: Sequence[bytes], params: SearchParams) -> AsyncIterator[BatchLine]:
        """Many."""
        ...


class Remote:
    """Methods that Serve calls by the names of ``retrieval.proto``."""

    async def Search(  # noqa: N802
        self: Searches, request: rpc.SearchRequest, grpc_context: RayServegRPCContext
    ) -> rpc.SearchAnswer:
        """One search, as ``POST /v1/search``."""
        with _told(grpc_context):
            principal = self.authenticator.principal(_peer(grpc_context))
            asked = search_from_proto(request)
            return answer_to_proto(await self.search(principal, asked.subject, asked.params))

    async def SearchBatch(  # noqa: N802
        self: Searches, request: rpc.SearchBatchRequest, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[rpc.BatchLine]:
        """Many searches, as ``POST /v1/search:batch``."""
        with _told(grpc_context):
            principal = self.authenticator.principal(_peer(grpc_context))
            asked = batch_from_proto(request)
            async for line in self.search_many(principal, asked.scans, asked.params):
                yield line_to_proto(line)


def _peer(context: RayServegRPCContext) -> Peer:
    metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    return Peer.of_grpc(context.peer(), metadata)


@contextlib.contextmanager
def _told(context: RayServegRPCContext) -> Iterator[None]:
    """Give a search that fails the status that fits; Serve keeps what was set before something is raised."""
    try:
        yield
    except MrcgError as error:
        _tell(context, problem_of(error))
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        told = invalid(first["loc"], first["msg"])
        _tell(context, told)
        raise ValueError(told.detail) from None  # the error's own text has the value, which may be the upload
    except Exception as error:
        log.error("request failed", exc_info=error)
        _tell(context, problem(500, "internal", "the service failed; its log says why"))
        raise


def _tell(context: RayServegRPCContext, told: Problem) -> None:
    context.set_code(_STATUS.get(told.status, grpc.StatusCode.INTERNAL))
    # Of a call that fails Serve passes status and details on, no trailing metadata.
    context.set_details(f"{told.code}: {told.detail}")
