"""Where replicas write what they log."""

from __future__ import annotations

import logging

#: Serve's own: one file a replica, a JSON object a line where Serve is told so, with the id of the request.
_SERVE = "ray.serve"
_OURS = ("mrcg", "mrcg_serve")


def join() -> None:
    """Write what the library and this shell log where Serve writes its own. Never pixels, vectors or identifiers."""
    for name in _OURS:
        log = logging.getLogger(name)
        log.handlers = logging.getLogger(_SERVE).handlers
        log.setLevel(logging.INFO)
        log.propagate = False
