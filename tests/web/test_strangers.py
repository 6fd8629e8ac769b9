"""Replicas listen for calls of other stages on all addresses, and refuse calls without the cluster's token."""

import os
from pathlib import Path

import grpc
import psutil
import pytest

pytestmark = pytest.mark.slow

METHOD = "/ray.serve.ASGIService/HandleRequest"


@pytest.fixture(scope="module")
def ports(watched_service):
    """The ports on which each of the four replicas listens."""
    children = psutil.Process(watched_service.pid).children(recursive=True)
    replicas = [process for process in children if "ServeReplica" in process.name()]
    listening = [
        [c.laddr.port for c in replica.net_connections("tcp") if c.status == psutil.CONN_LISTEN] for replica in replicas
    ]
    assert len(listening) == 4
    return listening


def codes(listening, *metadata):
    """Return the status of a call without content on each of a replica's ports."""
    statuses = []
    for port in listening:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(METHOD)(b"", timeout=5, metadata=metadata)
        statuses.append(raised.value.code())
    return statuses


def test_a_call_without_the_token_is_refused(ports):
    for listening in ports:
        assert grpc.StatusCode.UNAUTHENTICATED in codes(listening)
        assert grpc.StatusCode.UNKNOWN not in codes(listening)


def test_the_same_call_with_the_token_is_accepted(ports):
    token = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").read_text().strip()
    for listening in ports:
        # The call is accepted and then fails, because it has no content.
        assert grpc.StatusCode.UNKNOWN in codes(listening, ("authorization", f"Bearer {token}"))
