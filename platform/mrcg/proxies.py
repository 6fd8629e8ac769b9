"""Proxies of the environment (HTTP_PROXY and its kin), which libraries read by themselves.

A hospital sets them for what leaves its network. Scans do not leave it, nor does what the nodes of a cluster exchange.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def bypass_for_this_machine() -> None:
    """Let no library of this process, and of those that it starts, use a proxy for this machine and for gRPC.

    Addresses that ``NO_PROXY`` names already stay in it.
    """
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts = list(dict.fromkeys([*hosts, *_LOOPBACK, *_own_addresses()]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(hosts)
    # Ray's and Serve's gRPC is between the nodes of a cluster. An empty value means: no proxy.
    os.environ["grpc_proxy"] = ""  # noqa: SIM112 - the name that gRPC reads


#: Keys of httpx's mounts that take the place of the proxies that it reads from the environment.
SCHEMES = ("http://", "https://")


def stays_inside(url: str) -> bool:
    """Return whether a URL's host is this machine or in a private network: a scan sent there needs no proxy."""
    host = urlsplit(url).hostname
    if not host:
        return False
    try:
        addresses = {str(found[4][0]).split("%")[0] for found in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(addresses) and all(_is_inside(address) for address in addresses)


def _is_inside(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_private or parsed.is_loopback or parsed.is_link_local


def _own_addresses() -> list[str]:
    name = socket.gethostname()
    try:
        found = {str(one[4][0]).split("%")[0] for one in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    return [name, *sorted({*found, *_outward_address()})]


def _outward_address() -> list[str]:
    """Return this machine's address in its network, by which Ray names the node; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
