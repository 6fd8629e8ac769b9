"""A span processor for tests: writes each span as a line of JSON to the file in MRCG_TEST_SPANS."""

import json
import os

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor


class _ToFile(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        assert context is not None
        line = {"trace": f"{context.trace_id:032x}", "name": span.name, "process": os.getpid()}
        with open(os.environ["MRCG_TEST_SPANS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def processors() -> list[SpanProcessor]:
    """Return the span processors for ``--spans``."""
    return [_ToFile()]
