"""A scan is never sent to a proxy unless its service lies outside the private network."""

import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mrcg.api.client import AsyncClient, Client
from mrcg.api.requests import SearchParams
from mrcg.errors import ServiceError
from mrcg.proxies import bypass_for_this_machine, stays_inside


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.1.2.3:8000", True),
        ("https://192.168.7.7", True),
        ("http://169.254.1.1", True),
        ("https://8.8.8.8", False),
        ("https://[2001:4860:4860::8888]", False),
        ("https://name.invalid", False),
        ("nothing", False),
    ],
)
def test_private_addresses_stay_inside(url, inside):
    assert stays_inside(url) is inside


@pytest.mark.parametrize("named", [None, "", "intern.example,127.0.0.1"])
def test_this_machine_is_reached_without_a_proxy(monkeypatch, named):
    for name in ("NO_PROXY", "no_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    if named is not None:
        monkeypatch.setenv("NO_PROXY", named)
    bypass_for_this_machine()
    hosts = os.environ["no_proxy"].split(",")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert {"localhost", "127.0.0.1", "::1"} <= set(hosts)
    assert len(hosts) == len(set(hosts))
    assert hosts[0] == (named.split(",")[0] if named else "localhost")
    assert os.environ["grpc_proxy"] == ""  # noqa: SIM112
    bypass_for_this_machine()
    assert os.environ["no_proxy"].split(",") == hosts


def test_who_uses_no_proxy_at_all_keeps_that(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    bypass_for_this_machine()
    assert os.environ["no_proxy"] == "*"


class Server(ThreadingHTTPServer):
    """Counts the requests that reach it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.seen.append(self.path)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(502)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def servers():
    both = Server(), Server()
    yield both
    for one in both:
        one.shutdown()
        one.server_close()


@pytest.fixture
def asked(servers, monkeypatch):
    service, proxy = servers
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return service, proxy


def test_a_scan_for_a_service_of_this_machine_goes_straight_there(asked):
    service, proxy = asked
    with Client(service.url, retries=0) as client, pytest.raises(ServiceError, match="502"):
        client.search(b"a scan", SearchParams())
    assert (service.seen, proxy.seen) == (["/v1/search"], [])


def test_the_client_for_asyncio_does_the_same(asked):
    service, proxy = asked

    async def ask():
        async with AsyncClient(service.url, retries=0) as client:
            await client.search(b"a scan", SearchParams())

    with pytest.raises(ServiceError, match="502"):
        asyncio.run(ask())
    assert (service.seen, proxy.seen) == (["/v1/search"], [])


def test_a_service_outside_is_asked_through_the_proxy(asked):
    service, proxy = asked
    with Client("http://203.0.113.7.invalid", retries=0) as client, pytest.raises(ServiceError):
        client.search(b"a scan", SearchParams())
    assert service.seen == []
    assert proxy.seen == ["http://203.0.113.7.invalid/v1/search"]
