"""Wait for a state that can be seen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import httpx


def wait_until(
    happened: Callable[[], object], seconds: float = 60.0, interval: float = 0.05, said: Callable[[], object] = str
) -> None:
    """Return as soon as something is true; fail after some seconds, with what ``said`` returns.

    A service may be unreachable meanwhile.
    """
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if happened():
                return
        assert time.monotonic() < until, f"did not happen within {seconds:g} s: {said()}"
        time.sleep(interval)
