"""A real S3 API over HTTP that fails now and then: ``python -m tests.s3_server PORT PART``.

PART of the requests are answered with 500 or 503 SlowDown, half of them after the work was done: the answer is lost,
as on a network. The draw is seeded, so a failing test fails again.
"""

import random
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]
ANSWERS = (("500 Internal Server Error", "InternalError"), ("503 Slow Down", "SlowDown"))


class Faulty:
    """A WSGI application that fails a part of what it is asked."""

    def __init__(self, application: Any, part: float) -> None:
        self._application = application
        self._part = part
        self._draw = random.Random(1)
        self._lock = threading.Lock()
        self.failed = 0

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/failed":
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(self.failed).encode()]
        with self._lock:
            fails, done, (status, code) = (
                self._draw.random() < self._part,
                self._draw.random() < 0.5,
                self._draw.choice(ANSWERS),
            )
        if not fails:
            return self._application(environ, start)
        self.failed += 1
        if done:
            for _ in self._application(environ, lambda *_: None):
                pass
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


if __name__ == "__main__":
    application = Faulty(DomainDispatcherApplication(create_backend_app), float(sys.argv[2]))
    server = make_server("127.0.0.1", int(sys.argv[1]), application, threaded=True)
    print("ready", flush=True)
    server.serve_forever()
