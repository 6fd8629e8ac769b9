"""Who may call. Until authentication comes, callers on this machine and nobody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mrcg.errors import ForbiddenError


@dataclass(frozen=True)
class Peer:
    """Whoever calls: the address, and the headers (gRPC: metadata) by lower-case name."""

    host: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_grpc(cls, peer: str, metadata: Mapping[str, str]) -> Peer:
        """The same of gRPC's own words: ``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000`` or ``ipv6:%5B::1%5D:50000``."""
        _, _, place = peer.partition(":")
        host = place.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
        return cls(host.strip("[]"), metadata)


class Authenticator(Protocol):
    """Says who a caller is."""

    def principal(self, peer: Peer) -> str:
        """Name of the caller.

        Raises:
            ForbiddenError: the caller may not come in.
        """
        ...


class LoopbackOnly:
    """Lets callers of this machine in."""

    def principal(self, peer: Peer) -> str:
        """``local``, for a peer on the loopback interface."""
        if not is_loopback(peer.host):
            raise ForbiddenError("only callers on this machine are served until authentication is set up")
        return "local"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
