"""Where replicas write their logs."""

from __future__ import annotations

import logging

#: Serve's logger. It writes one file per replica, with the request id, as JSON lines if Serve is configured to.
_SERVE = "ray.serve"
_LOGGERS = ("mrcg", "mrcg_serve")


def use_serve_handlers() -> None:
    """Send the logs of ``mrcg`` and ``mrcg_serve`` to Serve's log. Never log pixels, vectors or identifiers."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = logging.getLogger(_SERVE).handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False
