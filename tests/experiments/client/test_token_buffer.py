"""The token buffer, in an event loop whose clock is a number."""

from __future__ import annotations

import asyncio
import selectors

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.qoe import QoETarget, digestion_start
from experiments.client.token_buffer import TokenBuffer

TARGET = QoETarget(ttft_s=1.0, tds=5.0)


class VirtualSelector(selectors.DefaultSelector):
    """Instead of waiting for events, lets the clock jump to when the loop would wake."""

    now_s = 100.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        elif not ready and timeout is None:
            raise AssertionError("the loop would wait for ever")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: hours pass at once."""

    def __init__(self):
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self):
        """Seconds of virtual time."""
        return self._virtual.now_s


def virtually(coroutine):
    """Run a coroutine in virtual time; nothing may be left over when it ends."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:

        async def checked():
            result = await coroutine
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left
            return result

        return runner.run(checked())


async def stream(gaps_s, error=None, log=None):
    """Items 0, 1, 2 ..., each a gap after the one before it; then an error, if any."""
    try:
        for i, gap_s in enumerate(gaps_s):
            if gap_s:
                await asyncio.sleep(gap_s)
            yield i
        if error is not None:
            raise error
    finally:
        if log is not None:
            log.append("closed")


async def released(buffer):
    """Items of a buffer and when they came out, since the request."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    items, times_s = [], []
    async for item in buffer:
        items.append(item)
        times_s.append(loop.time() - start_s)
    return items, np.array(times_s)


def read_all(gaps_s, target=TARGET, **options):
    """Items, release times and the buffer of a stream that was read to its end."""

    async def go():
        async with TokenBuffer(stream(gaps_s), target, **options) as buffer:
            items, times_s = await released(buffer)
        return items, times_s, buffer

    return virtually(go())


gap_lists = st.lists(st.one_of(st.just(0.0), st.floats(0.001, 3)), min_size=1, max_size=25)
targets = st.builds(QoETarget, ttft_s=st.floats(0, 3), tds=st.floats(0.5, 20))


@settings(max_examples=60, deadline=None)
@given(gaps_s=gap_lists, target=targets)
def test_tokens_come_out_in_order_exactly_when_they_are_digested(gaps_s, target):
    """Nothing is lost or reordered; token j comes out at max(arrival, previous + 1/tds, ttft)."""
    items, times_s, buffer = read_all(gaps_s, target)
    assert items == list(range(len(gaps_s)))
    arrivals_s = np.cumsum(gaps_s)
    assert buffer.token_times_s == pytest.approx(arrivals_s, abs=1e-6)
    due_s, expected = -np.inf, []
    for arrival_s in buffer.token_times_s:
        due_s = digestion_start(arrival_s, due_s, target.ttft_s, target.tds)
        expected.append(due_s)
    assert times_s == pytest.approx(expected, abs=1e-5)
    assert buffer.released_tokens == buffer.arrived_tokens == len(gaps_s)
    assert buffer.held_tokens == 0


@settings(max_examples=40, deadline=None)
@given(gaps_s=gap_lists, target=targets)
def test_qoe_is_that_of_the_arrivals_and_holding_costs_nothing(gaps_s, target):
    """qoe() equals the definitions on the log; delay and window are those of the release too."""
    _, times_s, buffer = read_all(gaps_s, target)
    arrivals_s = buffer.token_times_s
    for name in ("area", "delay", "window"):
        assert getattr(buffer.qoe(), name) == getattr(qoe, name)(arrivals_s, target)
    # Rounding of timers, relative to sums that may be tiny.
    shown_s = np.maximum.accumulate(times_s)
    assert qoe.window(shown_s, target) == pytest.approx(buffer.qoe().window, abs=1e-4)


def test_jitter_within_the_buffer_is_invisible():
    """A burst, then a stall shorter than what is held: the reader sees an even pace."""
    gaps_s = [0.1] * 10 + [1.5] + [0.01] * 5
    _, times_s, _ = read_all(gaps_s)
    assert np.diff(times_s) == pytest.approx(0.2, abs=1e-6)
    assert times_s[0] == pytest.approx(1.0)


def test_late_timers_do_not_add_up():
    """A reader who is slow to take each token still gets the last one when it is due."""

    async def go():
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        async with TokenBuffer(stream([0.0] * 20), TARGET) as buffer:
            async for _ in buffer:
                await asyncio.sleep(0.15)
            return loop.time() - start_s

    assert virtually(go()) == pytest.approx(1.0 + 19 * 0.2 + 0.15)


def test_items_of_several_tokens_take_their_time():
    """An item of k tokens holds up the next one k times as long; one of none does not wait."""
    counts = [0, 3, 1, 0, 2, 0]
    items, times_s, buffer = read_all([0.0] * 6, tokens=lambda item: counts[item])
    assert items == [0, 1, 2, 3, 4, 5]
    assert times_s == pytest.approx([0.0, 1.0, 1.6, 1.6, 1.8, 1.8])
    assert buffer.arrived_tokens == 6


def test_the_clock_may_start_before_the_buffer():
    """With asked_s the wait for the response counts, as a reader would count it."""

    async def go():
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        await asyncio.sleep(0.7)
        async with TokenBuffer(stream([0.0]), TARGET, asked_s=asked_s) as buffer:
            await anext(buffer)
            return loop.time() - asked_s, buffer.token_times_s

    first_s, arrivals_s = virtually(go())
    assert first_s == pytest.approx(1.0)
    assert arrivals_s == pytest.approx([0.7])


def test_tokens_are_dated_while_nobody_reads():
    """The stream is read ahead, whatever the reader does, and its QoE is live."""

    async def go():
        async with TokenBuffer(stream([0.1] * 20), TARGET) as buffer:
            assert buffer.qoe() == (0.0, 0.0, 0.0)
            await asyncio.sleep(1.05)
            live = (buffer.arrived_tokens, buffer.held_tokens, buffer.released_tokens)
            score = buffer.qoe()
            await asyncio.sleep(30)
            return live, score, buffer.token_times_s

    live, score, times_s = virtually(go())
    assert live == (10, 10, 0)
    assert score == (1.0, 1.0, 1.0)
    assert times_s == pytest.approx(np.arange(1, 21) * 0.1)


def test_an_error_comes_after_the_tokens_before_it():
    """What came before a broken stream's end is still shown at its pace; then the error, once."""

    async def go():
        loop = asyncio.get_running_loop()
        start_s, got = loop.time(), []
        async with TokenBuffer(stream([0.0] * 4, OSError("reset")), TARGET) as buffer:
            with pytest.raises(OSError, match="reset"):
                async for item in buffer:
                    got.append(item)
            ended_s = loop.time() - start_s
            assert [item async for item in buffer] == []
        return got, ended_s

    got, ended_s = virtually(go())
    assert got == [0, 1, 2, 3]
    assert ended_s == pytest.approx(1.6)


def test_a_stream_that_is_cancelled_is_no_end():
    """If the stream's own task is cancelled, its reader learns of it."""

    async def go():
        async with TokenBuffer(stream([0.0], asyncio.CancelledError()), TARGET) as buffer:
            assert await anext(buffer) == 0
            with pytest.raises(asyncio.CancelledError):
                await anext(buffer)

    virtually(go())


@settings(max_examples=40, deadline=None)
@given(gaps_s=gap_lists, patience_s=st.floats(0.01, 2))
def test_cancelled_reads_lose_nothing(gaps_s, patience_s):
    """A reader who gives up waiting and asks again gets every item, in order, on time."""

    async def go():
        items = []
        async with TokenBuffer(stream(gaps_s), TARGET) as buffer:
            while True:
                try:
                    async with asyncio.timeout(patience_s):
                        items.append(await anext(buffer))
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    return items, buffer.released_tokens

    items, count = virtually(go())
    assert items == list(range(len(gaps_s)))
    assert count == len(gaps_s)


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.3, 20.0])
def test_closing_reaches_the_stream_and_ends_the_reader(after_s):
    """Whenever it is closed, the stream is closed, a waiting reader ends, nothing runs on."""

    async def go():
        log = []
        buffer = TokenBuffer(stream([0.3] * 30, log=log), TARGET)
        reader = asyncio.create_task(released(buffer))
        await asyncio.sleep(after_s)
        await buffer.aclose()
        loop = asyncio.get_running_loop()
        closed_s = loop.time()
        items, _ = await reader
        assert loop.time() == closed_s
        await buffer.aclose()
        assert [item async for item in buffer] == []
        return items, log

    items, log = virtually(go())
    assert items == list(range(len(items)))
    # A generator that never began has nothing to close.
    assert log == (["closed"] if after_s else [])


def test_leaving_early_closes_the_stream():
    """Breaking out of the loop under `async with` cancels what is pending."""

    async def go():
        log = []
        async with TokenBuffer(stream([0.3] * 30, log=log), TARGET) as buffer:
            async for item in buffer:
                if item == 2:
                    break
        return log

    assert virtually(go()) == ["closed"]


class Client:
    """A stream as HTTP clients have them: iterable, with a close() that may need awaiting."""

    def __init__(self, awaitable):
        self.awaitable = awaitable
        self.closed = 0

    def __aiter__(self):
        return stream([0.1, 0.1])

    def close(self):
        """Close, now or when awaited."""
        if not self.awaitable:
            self.closed += 1
            return None
        return self._close()

    async def _close(self):
        self.closed += 1


@pytest.mark.parametrize("awaitable", [True, False])
def test_close_will_do_for_aclose(awaitable):
    """Streams with close() in place of aclose(), as an openai client's, are closed once."""

    async def go():
        client = Client(awaitable)
        async with TokenBuffer(client, TARGET) as buffer:
            assert [item async for item in buffer] == [0, 1]
        await buffer.aclose()
        return client.closed

    assert virtually(go()) == 1


def test_two_readers_are_refused():
    """A buffer has one reader; a second one is told so rather than given half the text."""

    async def go():
        async with TokenBuffer(stream([1.0]), TARGET) as buffer:
            first = asyncio.create_task(anext(buffer))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="read elsewhere"):
                await anext(buffer)
            assert await first == 0

    virtually(go())


def test_negative_token_counts_are_refused():
    """A count below 0 is quoted."""

    async def go():
        async with TokenBuffer(stream([0.0]), TARGET, tokens=lambda _: -1) as buffer:
            with pytest.raises(ValueError, match="-1 < 0"):
                await anext(buffer)

    virtually(go())
