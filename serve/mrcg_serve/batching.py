"""One call to another process for many requests.

A call between processes costs as much as the work of a small stage, however much it carries. So what comes while calls
are under way goes together with the next; on an idle service nothing waits.
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
#: Seconds after which a call no longer keeps others waiting: its replica may hang.
PATIENCE = 1.0


@dataclass(frozen=True)
class _Waiting(Generic[Item, Result]):
    context: RequestContext
    item: Item
    future: asyncio.Future[Result]
    variables: contextvars.Context


class Coalescer(Generic[Item, Result]):
    """Puts items that wait together into one call.

    Args:
        call: takes contexts and items, answers a result or an error of ours for each.
        most: items of one call.
        at_once: calls that are under way before anything waits: as many as there may be replicas.
    """

    def __init__(
        self,
        call: Callable[[list[RequestContext], list[Item]], Awaitable[Sequence[Result | MrcgError]]],
        most: int,
        at_once: int,
    ) -> None:
        self._call, self._most, self._at_once = call, most, at_once
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._senders = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, context: RequestContext, item: Item) -> Result:
        """The result for one item; what its call or the stage raises for it is raised."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(context, item, future, contextvars.copy_context()))
        if self._senders < self._at_once:
            self._senders += 1
            self._start(self._send_all(), contextvars.copy_context())
        return await future

    def _start(self, work: Coroutine[None, None, None], variables: contextvars.Context) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=variables)
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send_all(self) -> None:
        while some := self._take():
            # Serve takes the request's id and trace from here: a call is told by the first request in it.
            await asyncio.wait([self._start(self._send(some), some[0].variables)], timeout=PATIENCE)
        self._senders -= 1  # nothing comes between: whoever comes next starts another

    def _take(self) -> list[_Waiting[Item, Result]]:
        some: list[_Waiting[Item, Result]] = []
        while self._waiting and len(some) < self._most:
            one = self._waiting.popleft()
            if not one.future.done():  # who asked may have gone
                some.append(one)
        return some

    async def _send(self, some: list[_Waiting[Item, Result]]) -> None:
        remaining = max(one.context.remaining() for one in some)
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                outcomes = await self._call([one.context for one in some], [one.item for one in some])
        except Exception as error:  # of the call: everybody's
            for one in some:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        for one, outcome in zip(some, outcomes, strict=True):
            if one.future.done():
                continue
            if isinstance(outcome, MrcgError):
                one.future.set_exception(outcome)
            else:
                one.future.set_result(outcome)
