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
import time
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import numpy as np

from andes_opt.qoe import QoETarget
from experiments.client.reply import ReplyReader, error_message
from experiments.configuration.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from andes_opt.workload import Requests
    from experiments.client.endpoint import Endpoint

#: How often the event loop is asked how late it is.
_PROBE_EVERY_S = 0.01
_RETRY_EVERY_S = 0.25
#: A server that takes longer to say which models it has is gone.
_ANSWER_WITHIN_S = 10.0
_MOST_AT_ONCE = 32
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

    Ctrl-C stops the run: what streams is hung up, which ends it at the server too, and the log
    says so. A second one stops without a log.

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
    """
    return asyncio.run(_replay(requests, endpoint, seed, timeout_s, wait_s, finished))


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

        interrupted = False
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
                stream = loop.create_task(_stream(session, endpoint, body, start_s, timeout_s))
                stream.add_done_callback(ended)
                streams.append(stream)
                in_flight += 1
                in_flight_max = max(in_flight_max, in_flight)
            await asyncio.gather(*streams)
        except asyncio.CancelledError:
            interrupted = True
            for stream in streams:
                stream.cancel()
        results = await asyncio.gather(*streams, return_exceptions=True)
        probe.cancel()
        wall_s, cpu_s = loop.time() - began_s, time.process_time() - cpu_s
        replies = tuple(_reply_of(result) for result in results)
        incomplete = any(reply.outcome is not Outcome.COMPLETED for reply in replies)
        return ClientLog(
            requests=requests,
            replies=replies,
            loop_lag_s=np.array(lags_s),
            in_flight_max=in_flight_max,
            wall_s=wall_s,
            cpu_s=cpu_s,
            interrupted=interrupted,
            server_gone=incomplete and not interrupted and not await _answers(session, endpoint),
        )


async def _stream(
    session: aiohttp.ClientSession,
    endpoint: Endpoint,
    body: bytes,
    start_s: float,
    timeout_s: float | None,
) -> Reply:
    """Post one request and read its reply to the end, whatever that is."""
    loop = asyncio.get_running_loop()
    reader, wire = ReplyReader(), _Wire()
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
                async for chunk in response.content.iter_any():
                    reader.feed(chunk, loop.time() - start_s)
                    if reader.done:
                        break
                outcome, error = _verdict(reader)
    except TimeoutError:
        outcome, error = Outcome.TIMED_OUT, f"not complete after {timeout_s} s."
    except (aiohttp.ClientError, OSError) as broken:
        outcome, error = _verdict(reader)
        if outcome is not Outcome.COMPLETED:
            error = " ".join(f"{type(broken).__name__}: {broken}".split())
    except asyncio.CancelledError:
        outcome, error = Outcome.INTERRUPTED, "the run was stopped."
    times_s, estimated = reader.token_times_s()
    if outcome is Outcome.COMPLETED and times_s.size == 0:
        outcome, error = Outcome.FAILED, "the reply is empty."
    return Reply(
        outcome=outcome,
        error=error,
        sent_s=sent_s - start_s,
        connect_s=wire.reached_s - sent_s,
        token_times_s=times_s,
        estimated=estimated,
        events=reader.events,
        malformed=reader.malformed,
        prompt_tokens=reader.prompt_tokens,
    )


def _verdict(reader: ReplyReader) -> tuple[Outcome, str]:
    """How a stream that came to its end has ended."""
    if reader.error is not None:
        return Outcome.FAILED, reader.error
    if not reader.finished:
        return Outcome.FAILED, "the stream broke off."
    return Outcome.COMPLETED, ""


def _reply_of(result: Reply | BaseException) -> Reply:
    """A task's result; one that was stopped before it began has sent nothing."""
    if isinstance(result, asyncio.CancelledError):
        nothing = np.empty(0)
        message = "the run was stopped."
        return Reply(Outcome.INTERRUPTED, message, math.nan, math.nan, nothing, False, 0, 0, None)
    if isinstance(result, BaseException):
        raise result
    return result


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
    return getproxies().get(url.scheme)


async def _answers(session: aiohttp.ClientSession, endpoint: Endpoint) -> bool:
    """Whether there is still a server."""
    try:
        async with (
            asyncio.timeout(_ANSWER_WITHIN_S),
            session.get(endpoint.models_url) as response,
        ):
            return response.status < 500
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
                    text = await response.text()
            if response.status < 500 or loop.time() >= give_up_s:
                break
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if loop.time() >= give_up_s:
                raise UsageError(f"no server answers at {endpoint.url}: {error}.") from error
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
