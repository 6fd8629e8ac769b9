"""Who may call the service. Until authentication is added, only callers on this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mrcg.errors import ForbiddenError


@dataclass(frozen=True)
class Peer:
    """The remote end of a call: its address, and its headers (gRPC: metadata) by lower-case name."""

    host: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_grpc(cls, peer: str, metadata: Mapping[str, str]) -> Peer:
        """The peer of a gRPC call.

        Args:
            peer: as gRPC reports it: ``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000`` or ``ipv6:%5B::1%5D:50000``.
            metadata: of the call.
        """
        _, _, address = peer.partition(":")
        host = address.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
        return cls(host.strip("[]"), metadata)


class Authenticator(Protocol):
    """Identifies callers."""

    def principal(self, peer: Peer) -> str:
        """Return the name of the caller.

        Raises:
            ForbiddenError: the caller is not authorised.
        """
        ...


class LoopbackOnly:
    """Accepts callers on this machine and refuses all others."""

    def principal(self, peer: Peer) -> str:
        """Return ``local`` for a peer on the loopback interface.

        Raises:
            ForbiddenError: the peer is on another machine.
        """
        if not is_loopback(peer.host):
            raise ForbiddenError("only callers on this machine are served until authentication is set up")
        return "local"


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
