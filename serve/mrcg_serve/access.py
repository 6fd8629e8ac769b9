"""Who may call. Until authentication comes, callers on this machine and nobody else."""

from __future__ import annotations

import ipaddress
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request


class Authenticator(Protocol):
    """Says who a caller is."""

    def principal(self, request: Request) -> str:
        """Name of the caller.

        Raises:
            HTTPException: 403, the caller may not come in.
        """
        ...


class LoopbackOnly:
    """Lets callers of this machine in."""

    def principal(self, request: Request) -> str:
        """``local``, for a peer on the loopback interface."""
        host = request.client.host if request.client else ""
        if not is_loopback(host):
            raise HTTPException(403, "only callers on this machine are served until authentication is set up")
        return "local"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
