"""
An open-loop client: requests leave at their times, whatever the server does.

A closed loop, in which a user waits for one reply before asking again, hides overload: a slow
server gets fewer requests. Readers do not know of each other, so each request has its own
connection. All times count from the arrival that the workload says, not from when the request
left, so a client that falls behind looks like a slow server and never like a fast one; how far
it fell behind is part of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import threading
import time
from array import array
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import numpy as np

from andes_opt import checks
from andes_opt.qoe import QoETarget
from experiments.client.reply import ReplyReader, error_message
from experiments.configuration.errors import Terminated, UsageError
from experiments.configuration.output import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from andes_opt.workload import Requests
    from experiments.client.endpoint import Endpoint

#: How often the event loop is asked how late it is.
_PROBE_EVERY_S = 0.01
_RETRY_EVERY_S = 0.25
#: A server that takes longer to say which models it has is gone.
_ANSWER_WITHIN_S = 10.0
_MOST_AT_ONCE = 32
#: How long to wait for counts after the reply's end, on a connection that stays open.
_COUNTS_WITHIN_S = 1.0
#: What proxies answer for a server that is gone; any other answer is one's own.
_GONE = (502, 503, 504)
_MOST_ERROR_BYTES = 4096


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REFUSED = "refused"  # the server answered with an error
    FAILED = "failed"  # no connection, broken off, or an error in the stream
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"  # by the user, who stopped the run


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """
    What came of one request.

    Parameters
    ----------
    outcome
        How it ended.
    error
        Why, if not completed; empty otherwise.
    sent_s
        When the client began to send it, on the run's clock; NaN if it never did.
    connect_s
        From then until it was on the wire: finding, reaching and greeting the server; NaN if it
        never was.
    token_times_s
        When each token came, on the run's clock, (n,).
    estimated
        Whether the times of tokens within the stream are estimates.
    events, malformed
        Events with tokens or text, and events that made no sense.
    prompt_tokens
        Length of the prompt as the server counted it, or None.
    """

    outcome: Outcome
    error: str
    sent_s: float
    connect_s: float
    token_times_s: NDArray[np.float64]
    estimated: bool
    events: int
    malformed: int
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ClientLog:
    """
    All that a run of the client saw.

    Parameters
    ----------
    requests
        The workload.
    replies
        Of the first requests, in order of arrival: all of them unless interrupted.
    loop_lag_s
        How late the event loop was, asked for every 10 ms of the run, (k,).
    in_flight_max
        Most requests that waited for their reply's end at once.
    wall_s, cpu_s
        Duration of the run, and the processor time that this process took for it.
    interrupted
        Whether the user stopped the run.
    server_gone
        Whether not all is complete and the server no longer answers.
    terminated
        Whether it was SIGTERM that stopped the run.
    """

    # Without repr: asyncio writes a task's result out when it puts back the signal handler.
    requests: Requests = field(repr=False)
    replies: tuple[Reply, ...] = field(repr=False)
    loop_lag_s: NDArray[np.float64] = field(repr=False)
    in_flight_max: int
    wall_s: float
    cpu_s: float
    interrupted: bool
    server_gone: bool
    terminated: bool = False

    def stop(self) -> None:
        """Raise what stopped the run, if anything did."""
        if self.interrupted:
            raise Terminated if self.terminated else KeyboardInterrupt


def replay(
    requests: Requests,
    endpoint: Endpoint,
    *,
    seed: int = 0,
    timeout_s: float | None = 600.0,
    wait_s: float = 0.0,
    finished: Callable[[], object] = lambda: None,
) -> ClientLog:
    """
    Send requests at their times, and log what comes back.

    Ctrl-C or SIGTERM stops the run: what streams is hung up, which ends it at the server too, and
    the log says so. A second one stops without a log.

    Parameters
    ----------
    requests
        What to send when. The first one leaves at once, the others as long after it as their
        arrivals say.
    endpoint
        Where to.
    seed
        Of the prompts.
    timeout_s
        A reply that is not complete so long after its request left is given up; None: never.
    wait_s
        How long to wait for a server that is not up yet.
    finished
        Called whenever a request has ended.

    Returns
    -------
    ClientLog
        Errors of single requests are part of it.

    Raises
    ------
    UsageError
        If no server answers, or it has not got the model.
    ValueError
        If ``wait_s`` or ``timeout_s`` is out of range.
    KeyboardInterrupt
        If the run was stopped before anything was sent.
    """
    checks.non_negative("wait_s", wait_s)
    if timeout_s is not None:
        checks.positive("timeout_s", timeout_s)
    try:
        return asyncio.run(_stoppable(requests, endpoint, seed, timeout_s, wait_s, finished))
    except asyncio.CancelledError:  # by SIGTERM, before anything was sent
        raise Terminated from None


async def _stoppable(*arguments: Any) -> ClientLog:
    with _stopped_by_sigterm() as terminated:
        log = await _replay(*arguments)
    return replace(log, terminated=bool(terminated))


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[list[int]]:
    """Let a first SIGTERM cancel the running task, as a first Ctrl-C does; gives its number."""
    received: list[int] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield received
        return
    earlier = signal.getsignal(signal.SIGTERM)

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, earlier)
        loop.call_soon_threadsafe(task.cancel)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, earlier)


async def _replay(
    requests: Requests,
    endpoint: Endpoint,
    seed: int,
    timeout_s: float | None,
    wait_s: float,
    finished: Callable[[], object],
) -> ClientLog:
    _allow_open_files(requests.num_requests + 64)
    async with _session(endpoint) as session:
        model = await _find_model(session, endpoint, wait_s)
        loop = asyncio.get_running_loop()
        lags_s = array("d")
        probe = loop.create_task(_probe_lag(lags_s))
        streams: list[asyncio.Task[Reply]] = []
        in_flight = in_flight_max = 0

        def ended(_: asyncio.Task[Reply]) -> None:
            nonlocal in_flight
            in_flight -= 1
            finished()

        interrupted = gone = False
        cpu_s, began_s = time.process_time(), loop.time()
        start_s = began_s - float(requests.arrival_s[0])  # zero of the workload's clock
        try:
            for i in range(requests.num_requests):
                # Ready before its time, so that writing it out delays nobody.
                body = _body(endpoint, model, seed, requests, i)
                early_s = start_s + float(requests.arrival_s[i]) - loop.time()
                # A late request waits for no round of a busy loop, but a crowd of them must let
                # the streams be read between.
                if early_s > 0 or i % _MOST_AT_ONCE == 0:
                    await asyncio.sleep(max(0.0, early_s))
                wanted_tokens = int(requests.output_tokens[i])
                stream = loop.create_task(
                    _stream(session, endpoint, body, wanted_tokens, start_s, timeout_s)
                )
                stream.add_done_callback(ended)
                streams.append(stream)
                in_flight += 1
                in_flight_max = max(in_flight_max, in_flight)
            await asyncio.gather(*streams)
        except asyncio.CancelledError:
            interrupted = True
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        wall_s, cpu_s = loop.time() - began_s, time.process_time() - cpu_s
        probe.cancel()
        replies = tuple(_reply_of(stream) for stream in streams)
        if not interrupted and any(reply.outcome is not Outcome.COMPLETED for reply in replies):
            try:
                gone = not await _answers(session, endpoint)
            except asyncio.CancelledError:
                interrupted = True
        return ClientLog(
            requests=requests,
            replies=replies,
            loop_lag_s=np.array(lags_s),
            in_flight_max=in_flight_max,
            wall_s=wall_s,
            cpu_s=cpu_s,
            interrupted=interrupted,
            server_gone=gone,
        )


async def _stream(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    body: bytes,
    wanted_tokens: int,
    start_s: float,
    timeout_s: float | None,
) -> Reply:
    """Post one request and read its reply to the end, whatever that is."""
    loop = asyncio.get_running_loop()
    reader, wire = ReplyReader(endpoint.choices), _Wire()
    sent_s = loop.time()
    outcome, error = Outcome.FAILED, ""
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(endpoint.stream_url, data=body, trace_request_ctx=wire) as response,
        ):
            if response.status != 200:
                outcome = Outcome.REFUSED
                error = f"{response.status}: {await _beginning(response)}"
            elif response.content_type != "text/event-stream":
                error = f"{response.content_type} is no event stream: {await _beginning(response)}"
            else:
                await _read(response.content, reader, start_s)
                outcome, error = _verdict(reader)
    except asyncio.CancelledError:
        outcome, error = _verdict(reader, Outcome.INTERRUPTED, "the run was stopped.")
    except TimeoutError:
        late = f"not complete after {timeout_s} s."
        outcome, error = _verdict(reader, Outcome.TIMED_OUT, late)
    except Exception as broken:  # whatever it is, it is this request's, and no other's
        outcome, error = _verdict(reader, Outcome.FAILED, f"{type(broken).__name__}: {broken}")
    times_s, estimated = reader.token_times_s()
    if outcome is Outcome.COMPLETED:
        error = _shortfall(reader, endpoint, times_s.size, wanted_tokens)
        outcome = Outcome.FAILED if error else outcome
    return Reply(
        outcome=outcome,
        error=visible(" ".join(error.split())),
        sent_s=sent_s - start_s,
        connect_s=wire.reached_s - sent_s,
        token_times_s=times_s,
        estimated=estimated,
        events=reader.events,
        malformed=reader.malformed,
        prompt_tokens=reader.prompt_tokens,
    )


async def _read(content: aiohttp.StreamReader, reader: ReplyReader, start_s: float) -> None:
    """Read a stream to its end: of the reply and its counts, or of the connection."""
    loop = asyncio.get_running_loop()
    while not reader.done:
        try:
            async with asyncio.timeout(_COUNTS_WITHIN_S if reader.finished else None):
                chunk = await content.readany()
        except TimeoutError:
            return
        if not chunk:
            return
        reader.feed(chunk, loop.time() - start_s)


def _verdict(
    reader: ReplyReader, outcome: Outcome = Outcome.FAILED, error: str = ""
) -> tuple[Outcome, str]:
    """
    Tell how a stream has ended.

    Parameters
    ----------
    reader
        What came.
    outcome, error
        How its reading ended, and why; what counts if the reply was not complete by then.
    """
    reader.end()
    if reader.error is not None:
        return Outcome.FAILED, reader.error
    if reader.finished:
        return Outcome.COMPLETED, ""
    return outcome, error or reader.what_is_missing()


def _shortfall(reader: ReplyReader, endpoint: Endpoint, tokens: int, wanted_tokens: int) -> str:
    """Why a reply that says that it is complete is not; empty if it is."""
    if tokens == 0:
        return "the reply is empty."
    exact = endpoint.reply_length != "at_most" and reader.counted
    if exact and not reader.gives_reasons and tokens < wanted_tokens:
        return f"it ended after {tokens} of {wanted_tokens} tokens without a finish_reason."
    return ""


def _reply_of(stream: asyncio.Task[Reply]) -> Reply:
    """A task's result; one that was stopped before it began has sent nothing."""
    if stream.cancelled():
        nothing = np.empty(0)
        message = "the run was stopped."
        return Reply(Outcome.INTERRUPTED, message, math.nan, math.nan, nothing, False, 0, 0, None)
    return stream.result()


def _body(endpoint: Endpoint, model: str, seed: int, requests: Requests, i: int) -> bytes:
    """The i-th request; its prompt depends on the seed and on i alone."""
    content = endpoint.request_body(
        model,
        np.random.default_rng([seed, i]),
        int(requests.prompt_tokens[i]),
        int(requests.output_tokens[i]),
        QoETarget(float(requests.ttft_s[i]), float(requests.tds[i])),
    )
    return json.dumps(content, separators=(",", ":")).encode()


async def _probe_lag(lags_s: array[float]) -> None:
    """
    Ask to be woken every 10 ms, and note how late that was.

    After a stall all wake-ups that it swallowed are noted, else a second of it would be one
    sample among thousands ("coordinated omission").
    """
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        due_s += _PROBE_EVERY_S
        early_s = due_s - loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        lags_s.append(max(0.0, loop.time() - due_s))


@dataclass(slots=True)
class _Wire:
    """Notes when a request was on the wire; NaN before."""

    reached_s: float = math.nan


async def _on_the_wire(_session: object, context: Any, _parameters: object) -> None:
    if isinstance(context.trace_request_ctx, _Wire):
        context.trace_request_ctx.reached_s = asyncio.get_running_loop().time()


def _session(endpoint: Endpoint) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_on_the_wire)
    return aiohttp.ClientSession(
        # A connection of its own for each reader: none waits for another's, and none is lost
        # because the server closed an idle connection just then.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        headers=endpoint.headers(),
        trace_configs=[trace],
        proxy=_proxy(endpoint),
    )


def _proxy(endpoint: Endpoint) -> str | None:
    """The proxy that the environment names, but not on the way to this very machine."""
    url = urlsplit(endpoint.url)
    if endpoint.is_local or proxy_bypass(url.hostname or ""):
        return None
    proxy = getproxies().get(url.scheme)
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        raise UsageError(
            f"environment variable {url.scheme}_proxy = {visible(proxy)!r} not understood: "
            "need http://HOST:PORT."
        )
    return proxy


async def _answers(session: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    """Whether there is still a server."""
    try:
        async with (
            asyncio.timeout(_ANSWER_WITHIN_S),
            session.get(endpoint.models_url) as response,
        ):
            return response.status not in _GONE
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def _find_model(session: aiohttp.ClientSession, endpoint: Endpoint, wait_s: float) -> str:
    """The model's name, once the server answers."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + wait_s
    while True:
        try:
            async with asyncio.timeout(max(_ANSWER_WITHIN_S, wait_s)):
                async with session.get(endpoint.models_url) as response:
                    text = (await response.read()).decode(errors="replace")
            named = endpoint.model is not None and response.status not in _GONE
            if named or response.status < 500 or loop.time() >= give_up_s:
                break
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if loop.time() >= give_up_s:
                why = visible(str(error) or type(error).__name__)
                raise UsageError(f"no server answers at {endpoint.url}: {why}.") from error
        await asyncio.sleep(_RETRY_EVERY_S)
    if endpoint.model is not None:
        return endpoint.model
    try:
        return str(json.loads(text)["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        said = f"{response.status}: {error_message(text)}"
        raise UsageError(f"{endpoint.models_url} lists no models ({said}); name one.") from error


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """What an answer that is no stream says, as far as that is short."""
    text = await response.content.read(_MOST_ERROR_BYTES)
    return error_message(text.decode(errors="replace"))


def _allow_open_files(files: int) -> None:
    """Raise the process's own limit on open files, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
