"""Combine requests that wait for the same stage into one call to another process.

A call between processes costs as much as the work of a small stage, however many items it carries. So requests that
arrive while calls are in progress go together in the next call; on an idle service nothing waits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mrcg.errors import MrcgError
from mrcg.retrieval.search import RequestContext

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Seconds after which a call no longer holds up the next one: its replica may hang.
SLOW_CALL_S = 1.0


@dataclass(frozen=True)
class _Pending(Generic[Item, Result]):
    context: RequestContext
    item: Item
    future: asyncio.Future[Result]
    variables: contextvars.Context


class CallBatcher(Generic[Item, Result]):
    """Combines items that wait at the same time into one call.

    Args:
        call: takes contexts and items; returns a result or an ``MrcgError`` for each item.
        max_items: items of one call, at most.
        max_calls: calls in progress before items wait: the largest number of replicas.
    """

    def __init__(
        self,
        call: Callable[[list[RequestContext], list[Item]], Awaitable[Sequence[Result | MrcgError]]],
        max_items: int,
        max_calls: int,
    ) -> None:
        self._call, self._max_items, self._max_calls = call, max_items, max_calls
        self._pending: deque[_Pending[Item, Result]] = deque()
        self._senders = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, context: RequestContext, item: Item) -> Result:
        """Return the result for one item; raise the stage's error for it, or the error of the whole call."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(context, item, future, contextvars.copy_context()))
        if self._senders < self._max_calls:
            self._senders += 1
            self._start(self._send_all(), contextvars.copy_context())
        return await future

    def _start(self, work: Coroutine[None, None, None], variables: contextvars.Context) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=variables)
        self._tasks.add(task)  # an event loop holds only weak references to its tasks
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_all(self) -> None:
        while batch := self._take_batch():
            # Serve takes the request id and the trace from these variables: a call carries those of its first request.
            await asyncio.wait([self._start(self._send(batch), batch[0].variables)], timeout=SLOW_CALL_S)
        self._senders -= 1  # no await since the queue was empty: the next item starts a new sender

    def _take_batch(self) -> list[_Pending[Item, Result]]:
        batch: list[_Pending[Item, Result]] = []
        while self._pending and len(batch) < self._max_items:
            pending = self._pending.popleft()
            if not pending.future.done():  # done: the caller has cancelled it
                batch.append(pending)
        return batch

    async def _send(self, batch: list[_Pending[Item, Result]]) -> None:
        remaining = max(pending.context.remaining() for pending in batch)
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                outcomes = await self._call([p.context for p in batch], [p.item for p in batch])
        except Exception as error:  # the call failed, so every request in it fails
            for pending in batch:
                if not pending.future.done():
                    pending.future.set_exception(error)
            return
        for pending, outcome in zip(batch, outcomes, strict=True):
            if pending.future.done():
                continue
            if isinstance(outcome, MrcgError):
                pending.future.set_exception(outcome)
            else:
                pending.future.set_result(outcome)
