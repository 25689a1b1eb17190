"""The client against a server that does what a script says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time

import aiohttp
import numpy as np
import pytest
from scripted_server import (
    DONE,
    FINISH,
    HangUp,
    Refusal,
    ScriptedServer,
    completion,
    event,
    steady,
    usage,
)

from andes_opt.workload import Requests
from experiments.client import open_loop
from experiments.client.endpoint import Endpoint
from experiments.client.open_loop import Outcome, replay
from experiments.client.reply import ReplyReader
from experiments.configuration.errors import UsageError

#: How much too early timers may fire. Nothing here minds how late a busy machine makes them.
EARLY_S = 0.01


def workload(arrivals, tokens=3):
    """Requests at some times; each wants ``tokens`` tokens."""
    n = len(arrivals)
    return Requests(
        arrival_s=np.array(arrivals, dtype=float),
        prompt_tokens=np.full(n, 4),
        output_tokens=np.full(n, tokens) if np.isscalar(tokens) else np.array(tokens),
        ttft_s=np.ones(n),
        tds=np.full(n, 5.0),
    )


def one(script, **options):
    """The reply to a single request under a script."""
    with ScriptedServer(script) as server:
        return replay(workload([0.0]), Endpoint(url=server.url), **options).replies[0]


def test_requests_leave_at_their_times_whatever_the_server_does():
    """A server that answers nobody before all have asked gets them all, none before its time."""
    arrivals = np.linspace(0.0, 0.3, 13)

    def script(body):
        while len(server.bodies) < arrivals.size:
            yield 0.01
        yield from steady(body)

    with ScriptedServer(script) as server:
        log = replay(workload(arrivals), Endpoint(url=server.url))
    assert log.in_flight_max == 13
    sent_s = np.array([reply.sent_s for reply in log.replies])
    assert (sent_s >= arrivals - EARLY_S).all()
    assert (sent_s < log.wall_s).all()
    for reply in log.replies:
        assert reply.outcome is Outcome.COMPLETED
        assert reply.token_times_s.size == 3
        assert reply.token_times_s[0] >= arrivals[-1]


def test_times_begin_with_the_first_arrival():
    """The clock of the log is the workload's, wherever that begins."""
    with ScriptedServer() as server:
        log = replay(workload([70.0, 70.1]), Endpoint(url=server.url))
    assert log.wall_s < 60
    for reply, arrival in zip(log.replies, [70.0, 70.1], strict=True):
        assert arrival - EARLY_S <= reply.sent_s <= reply.token_times_s[0]


def test_tokens_are_dated_when_they_come():
    """No token is dated before the server sent it; tokens of one event share a time."""

    def script(_body):
        yield 0.1
        yield completion("a", **usage(4, 1))
        yield 0.2
        yield completion("bc", **usage(4, 3))
        yield FINISH
        yield DONE

    reply = one(script)
    first, second, third = reply.token_times_s
    assert first >= 0.1 - EARLY_S
    assert second >= 0.3 - EARLY_S
    assert second == third
    assert (reply.events, reply.prompt_tokens, reply.estimated) == (2, 4, False)


def test_the_server_gets_what_the_workload_says():
    """Lengths, targets and the first listed model reach the server; prompts follow the seed."""
    with ScriptedServer(models=("tiny", "other")) as server:
        for seed in (1, 1, 2):
            replay(workload([0.0, 0.0], [2, 5]), Endpoint(url=server.url), seed=seed)
        bodies = sorted(server.bodies[:2], key=lambda body: body["max_tokens"])
        prompts = [{tuple(b["prompt"]) for b in server.bodies[i : i + 2]} for i in (0, 2, 4)]
    assert [body["max_tokens"] for body in bodies] == [2, 5]
    assert all(body["model"] == "tiny" for body in bodies)
    assert all(body["vllm_xargs"] == {"ttft_s": 1.0, "tds": 5.0} for body in bodies)
    assert prompts[0] == prompts[1] != prompts[2]
    assert len(prompts[0]) == 2


def test_a_refusal_is_a_result():
    """429 and its reason are logged; nothing is sent again."""
    with ScriptedServer(
        lambda _: iter([Refusal(429, '{"error": {"message": "too many"}}')])
    ) as server:
        (reply,) = replay(workload([0.0]), Endpoint(url=server.url)).replies
        assert len(server.bodies) == 1
    assert reply.outcome is Outcome.REFUSED
    assert reply.error == "429: too many"
    assert reply.token_times_s.size == 0


@pytest.mark.parametrize(
    ("steps", "error", "tokens"),
    [
        ([completion("a", **usage(1, 1)), 0.05, HangUp()], "", 1),
        ([completion("a", **usage(1, 1))], "broke off", 1),
        ([completion("a"), b'data: {"error": {"message": "no memory"}}\n\n', DONE], "no memory", 1),
        ([FINISH, DONE], "empty", 0),
        ([Refusal(200, '{"choices": []}')], "application/json is no event stream", 0),
    ],
)
def test_streams_that_fail_keep_what_came(steps, error, tokens):
    """Disconnects, streams without an end, error events, empty replies, answers of other kinds."""
    reply = one(lambda _: iter(steps))
    assert reply.outcome is Outcome.FAILED
    assert error in reply.error
    assert reply.error
    assert reply.token_times_s.size == tokens


def test_malformed_chunks_do_not_end_a_stream():
    """Garbage between events is counted, and the reply still completes with all tokens."""

    def script(body):
        first, *others = steady(body)
        yield first
        yield b"data: {\n\ngarbage\ndata: [3]\n\n"
        yield from others

    reply = one(script)
    assert reply.outcome is Outcome.COMPLETED
    assert reply.malformed == 2
    assert reply.token_times_s.size == 3


def test_an_end_without_done_is_an_end():
    """A finish reason completes a reply, even if the server then just hangs up."""
    reply = one(lambda _: iter([completion("a"), FINISH, 0.05, HangUp()]))
    assert reply.outcome is Outcome.COMPLETED


ABORT = event(choices=[{"index": 0, "text": "", "finish_reason": "abort"}])


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ([completion("a"), ABORT, DONE], "abort"),
        (
            [completion("a"), event(choices=[{"text": "", "finish_reason": {"type": "abort"}}])],
            "abort",
        ),
        # Three tokens are wanted, by a server that was told to send just so many.
        ([completion("a", **usage(1, 1)), DONE], "after 1 of 3 tokens"),
        ([b"nothing that is an event"], "begins with"),
    ],
)
def test_a_terminator_makes_no_success(steps, error):
    """[DONE] after an abort or after too few tokens completes nothing; what came is kept."""
    reply = one(lambda _: iter(steps))
    assert reply.outcome is Outcome.FAILED
    assert error in reply.error
    assert reply.token_times_s.size == (b"data" in steps[0])


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r"])
def test_a_last_line_needs_no_end(last):
    """[DONE] counts with a blank line after it or none."""
    reply = one(lambda _: iter([completion(text) for text in "abc"] + [last]))
    assert (reply.outcome, reply.token_times_s.size) == (Outcome.COMPLETED, 3)


def test_silence_after_the_end_is_not_waited_for():
    """With a reason for its end a reply is complete, though the connection stays open."""

    def script(_body):
        yield from [completion(text) for text in "abc"]
        yield FINISH
        yield 30.0

    began_s = time.monotonic()
    assert one(script).outcome is Outcome.COMPLETED
    assert time.monotonic() - began_s < 20  # no time is measured: a second passes, not thirty
    assert one(script, timeout_s=0.5).outcome is Outcome.COMPLETED


def test_counts_may_follow_the_end():
    """Usage that comes a little after the last text is still read."""

    def script(_body):
        yield completion("abc")
        yield FINISH
        yield 0.2
        yield event(choices=[], **usage(1, 3))
        yield 30.0

    reply = one(script)
    assert (reply.outcome, reply.token_times_s.size) == (Outcome.COMPLETED, 3)


def test_each_choice_must_end():
    """Of two choices that were asked for, one that ends completes no reply."""
    end = [event(choices=[{"index": k, "text": "", "finish_reason": "stop"}]) for k in (0, 1)]
    texts = event(choices=[{"index": k, "text": "ab", "token_ids": [1, 2]} for k in (0, 1)])
    replies = []
    for ends in ([end[0], DONE], [end[0], end[1], 30.0]):
        with ScriptedServer(lambda _, ends=ends: iter([texts, *ends])) as server:
            endpoint = Endpoint(url=server.url, body={"n": 2})
            replies += replay(workload([0.0]), endpoint).replies
    assert [reply.outcome for reply in replies] == [Outcome.FAILED, Outcome.COMPLETED]
    assert "1 of 2 choices" in replies[0].error
    assert replies[1].token_times_s.size == 4


@pytest.mark.parametrize(
    ("status", "gone"), [(500, False), (501, False), (404, False), (503, True)]
)
def test_only_a_proxys_word_says_that_a_server_is_gone(status, gone):
    """Servers without a list of models answer all sorts of things, and are there."""
    answers = iter([steady, lambda _: [Refusal(429, "slow down")]])
    with ScriptedServer(lambda body: next(answers)(body), models_status=status) as server:
        log = replay(workload([0.0, 0.1]), Endpoint(url=server.url, model="m"))
        # One that has to be waited for is asked until it answers, not until it has models.
        ready = ScriptedServer(models_status=status)
        if not gone:
            with ready:
                replay(workload([0.0]), Endpoint(url=ready.url, model="m"), wait_s=60)
            assert ready.asked_models == 1
    assert [reply.outcome for reply in log.replies] == [Outcome.COMPLETED, Outcome.REFUSED]
    assert log.server_gone is gone


def test_no_error_of_one_request_costs_the_others(monkeypatch):
    """What goes wrong in a request, whatever it is, is told of that request alone."""
    feed = ReplyReader.feed
    broken = iter([True])

    def breaks_once(reader, chunk, time_s):
        if next(broken, False):
            raise RuntimeError("oh\x1b[2J")
        feed(reader, chunk, time_s)

    monkeypatch.setattr(ReplyReader, "feed", breaks_once)
    with ScriptedServer() as server:
        log = replay(workload([0.0, 0.3]), Endpoint(url=server.url))
    assert [reply.outcome for reply in log.replies] == [Outcome.FAILED, Outcome.COMPLETED]
    assert log.replies[0].error == "RuntimeError: oh\\x1b[2J"


@pytest.mark.parametrize(("name", "value"), [("timeout_s", -1), ("timeout_s", 0), ("wait_s", -1.0)])
def test_times_out_of_range_are_refused_by_name(name, value):
    """Before anything is sent."""
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        replay(workload([0.0]), Endpoint(), **{name: value})


def test_a_slow_reply_is_given_up():
    """After timeout_s the stream is cut, at the server too, and keeps its tokens."""

    def script(_body):
        yield completion("a", **usage(1, 1))
        yield 30.0

    with ScriptedServer(script) as server:
        log = replay(workload([0.0]), Endpoint(url=server.url), timeout_s=1.5)
        deadline_s = time.monotonic() + 5
        while not server.hung_up and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert server.hung_up == 1
    (reply,) = log.replies
    assert reply.outcome is Outcome.TIMED_OUT
    assert "1.5" in reply.error
    assert reply.token_times_s.size == 1


def test_a_connection_that_is_refused_is_a_failure_of_that_request():
    """A server that goes away in the middle of a run fails requests, not the run."""
    with ScriptedServer() as server:
        requests = workload([0.0, 1.0])
        log = replay(requests, Endpoint(url=server.url), finished=server.close)
    assert [reply.outcome for reply in log.replies] == [Outcome.COMPLETED, Outcome.FAILED]
    assert log.replies[1].sent_s >= 1.0 - EARLY_S
    assert np.isnan(log.replies[1].connect_s)
    assert log.server_gone


def test_a_reply_without_any_token_is_no_reply():
    """Events that a server counts as 0 tokens are no completed reply, and end no run."""
    reply = one(lambda _: [event(choices=[{"text": "a", "token_ids": []}]), FINISH, DONE])
    assert (reply.outcome, reply.error) == (Outcome.FAILED, "the reply is empty.")


def test_a_server_that_breaks_streams_off_is_not_gone():
    """After failures the server is asked once more."""
    with ScriptedServer(lambda _: [completion("a"), HangUp()]) as server:
        log = replay(workload([0.0]), Endpoint(url=server.url))
    assert log.replies[0].outcome is Outcome.FAILED
    assert not log.server_gone


def test_a_slow_connection_is_not_the_clients_lag():
    """Until the server takes a connection, time is counted as connecting, not as lagging."""

    async def slow(*_):
        await asyncio.sleep(0.3)

    with ScriptedServer() as server, pytest.MonkeyPatch.context() as patch:
        original = aiohttp.TraceConfig.freeze

        def freeze(trace):
            trace.on_connection_create_start.append(slow)
            original(trace)

        patch.setattr(aiohttp.TraceConfig, "freeze", freeze)
        log = replay(workload([0.0]), Endpoint(url=server.url))
    assert log.replies[0].connect_s >= 0.3 - EARLY_S
    assert log.replies[0].token_times_s[0] >= 0.3 - EARLY_S


def test_a_stall_of_the_client_weighs_what_it_lasted():
    """A stall of 0.5 s is some fifty late wake-ups, not one."""
    log = replay_with_stall(0.5)
    assert (log.loop_lag_s > 0.1).sum() >= 30


def replay_with_stall(stall_s):
    """The log of a run in which this process stood still once."""
    stalled = []

    def stand_still():
        if not stalled:
            stalled.append(1)
            time.sleep(stall_s)

    with ScriptedServer() as server:
        requests = workload([0.0, 0.1 + stall_s])
        return replay(requests, Endpoint(url=server.url), finished=stand_still)


def test_the_environments_proxy_is_for_others_only(monkeypatch):
    """A remote server is reached through the proxy; one on this machine never is."""
    with ScriptedServer() as proxy, ScriptedServer() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        near = replay(workload([0.0]), Endpoint(url=server.url))
        assert (len(server.bodies), len(proxy.bodies)) == (1, 0)
        far = replay(workload([0.0]), Endpoint(url="http://far.example/v1"))
        assert (len(server.bodies), len(proxy.bodies)) == (1, 1)
    assert near.replies[0].outcome is far.replies[0].outcome is Outcome.COMPLETED


def test_a_proxy_without_a_scheme_is_told_by_its_variable(monkeypatch):
    """The message names the variable that has to be mended."""
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    with pytest.raises(UsageError, match=r"http_proxy = 'proxy\.example:3128'"):
        replay(workload([0.0]), Endpoint(url="http://far.example/v1"))


def test_no_server_is_told_in_a_sentence():
    """Without a server at all there is no run."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(UsageError, match="no server answers at"):
            replay(workload([0.0]), Endpoint(url=url))


def test_a_server_may_be_waited_for():
    """wait_s keeps asking until the server is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ScriptedServer(port=port)
    timer = threading.Timer(0.4, server.__enter__)
    timer.start()
    try:
        log = replay(workload([0.0]), Endpoint(url=f"http://127.0.0.1:{port}/v1"), wait_s=20)
    finally:
        timer.join()
        server.close()
    assert log.replies[0].outcome is Outcome.COMPLETED


def test_a_server_without_models_wants_a_name():
    """Where nothing is listed, the model must be named, and then is not asked for."""
    with ScriptedServer(models=()) as server:
        with pytest.raises(UsageError, match="lists no models"):
            replay(workload([0.0]), Endpoint(url=server.url))
        log = replay(workload([0.0]), Endpoint(url=server.url, model="mine"))
        assert server.bodies[0]["model"] == "mine"
    assert log.replies[0].outcome is Outcome.COMPLETED


def test_ctrl_c_ends_the_run_and_keeps_its_log():
    """SIGINT hangs up what streams, sends nothing more, and the log says what was so far."""

    def script(body):
        for i, step in enumerate(steady(body, gap_s=0.01)):
            if i == 60:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with ScriptedServer(script) as server:
        requests = workload([0.0, 0.0, 30.0], [5, 5000, 5])
        log = replay(requests, Endpoint(url=server.url))
        assert len(server.bodies) == 2
    assert log.interrupted
    assert [reply.outcome for reply in log.replies] == [Outcome.COMPLETED, Outcome.INTERRUPTED]
    assert log.replies[1].token_times_s.size > 5
    assert log.wall_s < 10


def test_sigterm_does_what_ctrl_c_does():
    """A first SIGTERM keeps the log, and afterwards the signal means what it meant before."""
    before = signal.getsignal(signal.SIGTERM)

    def script(_body):
        yield completion("a", **usage(1, 1))
        yield 0.1
        os.kill(os.getpid(), signal.SIGTERM)
        yield 30.0

    with ScriptedServer(script) as server:
        log = replay(workload([0.0, 30.0], 5), Endpoint(url=server.url))
    assert log.interrupted
    assert [reply.outcome for reply in log.replies] == [Outcome.INTERRUPTED]
    assert log.replies[0].token_times_s.size == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_server_is_asked_whether_it_lives_keeps_the_log(number, monkeypatch):
    """All replies are in by then; the stop costs the answer to that question only."""

    async def stopped(*_):
        os.kill(os.getpid(), number)
        await asyncio.sleep(30)

    monkeypatch.setattr(open_loop, "_answers", stopped)
    with ScriptedServer(lambda _: [Refusal(429, "slow down")]) as server:
        log = replay(workload([0.0]), Endpoint(url=server.url))
    assert log.interrupted
    assert [reply.outcome for reply in log.replies] == [Outcome.REFUSED]


def test_a_stop_before_anything_was_sent_is_an_interrupt():
    """SIGTERM while the server is waited for ends the run like Ctrl-C."""
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        replay(workload([0.0]), Endpoint(url="http://127.0.0.1:9/v1"), wait_s=60)


def test_a_hundred_streams_at_once_and_the_clients_own_lag():
    """Hundreds of streams run side by side; every token arrives, and the lag is on record."""
    n, tokens = 150, 8

    def script(body):
        while len(server.bodies) < n:
            yield 0.05
        yield from steady(body, gap_s=0.02)

    with ScriptedServer(script) as server:
        ended = []
        log = replay(
            workload(np.zeros(n), tokens),
            Endpoint(url=server.url),
            finished=lambda: ended.append(1),
        )
    assert len(ended) == n
    assert log.in_flight_max == n
    assert all(reply.token_times_s.size == tokens for reply in log.replies)
    assert log.loop_lag_s.size > 5
    assert (log.loop_lag_s >= 0).all()
    assert log.cpu_s > 0


def test_bodies_are_plain_json():
    """What is sent is compact JSON with the token ids as a list."""
    with ScriptedServer() as server:
        replay(workload([0.0]), Endpoint(url=server.url))
        assert json.loads(json.dumps(server.bodies[0])) == server.bodies[0]
        assert server.headers[0]["Accept-Encoding"] == "identity"
