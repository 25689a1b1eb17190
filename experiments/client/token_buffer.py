"""
The client-side token buffer of Andes (arXiv 2404.16283): text at the reader's pace.

Wraps any asynchronous stream of tokens, such as the chunks of an ``openai`` client. Tokens that
come early are held and released when the reader wants them: the first ``ttft_s`` after the
request, then ``tds`` a second. So bursts and jitter stay invisible as long as the buffer is not
empty, and the server may give its time to somebody else meanwhile.

::

    def text(chunk):
        return chunk.choices[0].delta.content or "" if chunk.choices else ""

    asked_s = asyncio.get_running_loop().time()
    stream = await client.chat.completions.create(stream=True, ...)
    async with TokenBuffer(
        stream,
        QoETarget(ttft_s=1.0, tds=4.8),
        asked_s=asked_s,
        tokens=lambda chunk: int(text(chunk) != ""),
    ) as buffer:
        async for chunk in buffer:
            print(text(chunk), end="", flush=True)
        print(buffer.qoe())
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

import numpy as np

from andes_opt import qoe

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable
    from types import TracebackType

    from numpy.typing import NDArray

    from andes_opt.qoe import QoETarget

Item = TypeVar("Item")

# Below what timers resolve, waiting would only spin.
_AT_ONCE_S = 1e-6


class StreamQoE(NamedTuple):
    """The three QoE scores of a stream; see :mod:`andes_opt.qoe`."""

    area: float
    delay: float
    window: float


class TokenBuffer(Generic[Item]):
    """
    An asynchronous iterator over a stream's items, at a reader's pace.

    Items come out in the order in which they came in, each exactly once. The stream is read
    ahead as fast as it comes, from the first use on, so that its tokens are dated when they
    arrive. After its end, held tokens still come at the reader's pace; so does an exception of
    the stream, after the tokens before it. Cancelling a pending ``__anext__`` loses no item.

    To stop early, close the buffer (``async with`` does): it stops reading and closes the
    stream, so that the server learns of it, and drops what it held.

    Parameters
    ----------
    stream
        What to read. Closing the buffer calls its ``aclose`` or ``close``, if it has one.
    target
        The reader's pace.
    asked_s
        When the request was made, on the running loop's clock (``loop.time()``); None for now,
        which leaves out what it took to get the stream.
    tokens
        Tokens in an item, >= 0; one each if not said. An item comes out when its first token
        is due, and the next one as many tokens later; one without tokens right after the
        one before it.
    """

    def __init__(
        self,
        stream: AsyncIterable[Item],
        target: QoETarget,
        *,
        asked_s: float | None = None,
        tokens: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self.target = target
        self._loop = asyncio.get_running_loop()
        self._asked_s = self._loop.time() if asked_s is None else asked_s
        self._stream = stream
        self._tokens = tokens
        self._held: deque[tuple[Item, float, int]] = deque()  # item, its arrival, its tokens
        self._times_s: list[float] = []  # arrival of each token, since the request
        self._released_tokens = 0
        self._next_due_s = self._asked_s + target.ttft_s
        self._news = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._alarm: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting = False
        self._closed = False

    @property
    def arrived_tokens(self) -> int:
        """Tokens that the stream has brought."""
        return len(self._times_s)

    @property
    def released_tokens(self) -> int:
        """Tokens that have been handed on."""
        return self._released_tokens

    @property
    def held_tokens(self) -> int:
        """Tokens that came early and wait for their reader."""
        return sum(tokens for _, _, tokens in self._held)

    @property
    def token_times_s(self) -> NDArray[np.float64]:
        """When each token arrived, (arrived_tokens,), seconds since the request."""
        return np.array(self._times_s, dtype=np.float64)

    def qoe(self) -> StreamQoE:
        """
        QoE of the stream so far, by when tokens arrived; all 0 before the first.

        As if the last token to arrive were the reply's last: a stall shows once it is over.
        Holding tokens for the reader changes neither ``delay`` nor ``window``: both count when a
        token is digested. (``area`` counts to the last arrival, so the log, not the
        release, is what it is made of.)
        """
        times_s = self.token_times_s
        return StreamQoE(
            area=qoe.area(times_s, self.target),
            delay=qoe.delay(times_s, self.target),
            window=qoe.window(times_s, self.target),
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._waiting:
            raise RuntimeError("this token buffer is being read elsewhere already.")
        self._waiting = True
        try:
            return await self._next()
        finally:
            self._waiting = False

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading, close the stream, and drop what is held; harmless if repeated."""
        if self._closed:
            return
        self._closed = True
        self._held.clear()
        self._news.set()
        _ring(self._alarm)
        try:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait([self._reading])
        finally:
            close = getattr(self._stream, "aclose", None) or getattr(self._stream, "close", None)
            if close is not None:
                closing = close()
                if closing is not None:
                    await closing

    def _begin(self) -> None:
        if self._reading is None and not self._closed:
            self._reading = self._loop.create_task(self._read())

    async def _read(self) -> None:
        """Take items as they come, and date them."""
        try:
            async for item in self._stream:
                tokens = self._tokens(item)
                if tokens < 0:
                    raise ValueError(f"tokens(item) = {tokens} < 0 not understood.")
                now_s = self._loop.time()
                self._held.append((item, now_s, tokens))
                self._times_s += [max(0.0, now_s - self._asked_s)] * tokens
                self._news.set()
        except Exception as error:
            self._error = error
        except asyncio.CancelledError as error:
            if not self._closed:
                self._error = error  # the stream's own: its reader must not take it for the end
            raise
        finally:
            self._ended = True
            self._news.set()

    async def _next(self) -> Item:
        self._begin()
        while not self._held:
            if self._closed:
                raise StopAsyncIteration
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

        item, arrived_s, tokens = self._held[0]
        if tokens:
            # By the clock of what is due, not of what was released: a timer that fires late
            # delays one token, not all that follow.
            due_s = max(arrived_s, self._next_due_s)
            if due_s - self._loop.time() > _AT_ONCE_S:
                await self._wait_until(due_s)
            if self._closed:
                raise StopAsyncIteration
            self._next_due_s = due_s + tokens / self.target.tds
        self._held.popleft()
        self._released_tokens += tokens
        return item

    async def _wait_until(self, due_s: float) -> None:
        """Wait for a time on the loop's clock, or for the buffer to be closed."""
        self._alarm = self._loop.create_future()
        timer = self._loop.call_at(due_s, _ring, self._alarm)
        try:
            await self._alarm
        finally:
            timer.cancel()


def _ring(alarm: asyncio.Future[None] | None) -> None:
    if alarm is not None and not alarm.done():
        alarm.set_result(None)
