"""The simulated engine keeps its books: blocks, tokens, time and readers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt import qoe
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.policy.fcfs import FCFS
from andes_opt.policy.round_robin import RoundRobin
from andes_opt.simulator import TIMELINE_COLUMNS, Iteration, simulate
from andes_opt.snapshot import NEVER, Action, Decision, Snapshot, Starved, State
from andes_opt.workload import Requests

LATENCY = LatencyModel(
    base_s=0.02, per_request_s=1e-3, per_context_token_s=1e-6, per_prefill_token_s=1e-4
)


class Storm:
    """
    Serves, holds and evicts at random, and passes through now and then.

    It ends after some hundred decisions: evicting at random for ever, a long prompt under
    recompute would never be done.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._decisions = 0
        self.left: list[int] = []

    def decide(self, snapshot: Snapshot) -> Decision:
        n = snapshot.num_requests
        self._decisions += 1
        if self._decisions > 300:
            return Decision(replan_after=NEVER)
        if self._rng.random() < 0.3:
            return Decision(replan_after=int(self._rng.integers(1, 5)))
        order = self._rng.permutation(n)
        action = self._rng.choice(np.array([0, 1, 1, 2], dtype=np.int8), n)
        action[order[np.cumsum(action[order] > 0) > snapshot.max_batch]] = Action.WAIT
        return Decision(action, order, replan_after=int(self._rng.integers(1, 5)))

    def finished(self, request_id: int) -> None:
        self.left.append(request_id)


def make_requests(n: int, seed: int, rate: float = 5.0) -> Requests:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate, n))
    return Requests(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=rng.integers(1, 120, n),
        output_tokens=rng.integers(1, 60, n),
        ttft_s=rng.choice([0.0, 0.5, 1.0], n),
        tds=rng.uniform(2.0, 20.0, n),
    )


def make_engine(**changes: object) -> EngineProfile:
    options = {
        "name": "tiny",
        "latency": LATENCY,
        "capacity_tokens": 512,
        "block_tokens": 16,
        "max_batch": 8,
        "token_budget": 64,
        "preemption": "swap",
        "swap_s_per_token": 1e-4,
    }
    return EngineProfile(**(options | changes))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    preemption=st.sampled_from(["swap", "recompute"]),
    capacity_tokens=st.sampled_from([192, 512, 4096]),
    token_budget=st.sampled_from([1, 7, 64, 2048]),
    storm=st.booleans(),
    hit_share=st.sampled_from([0.0, 0.6, 1.0]),
    reserve_full_context=st.booleans(),
    watermark=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_books_balance(
    seed: int,
    n: int,
    preemption: str,
    capacity_tokens: int,
    token_budget: int,
    storm: bool,
    hit_share: float,
    reserve_full_context: bool,
    watermark: float,
) -> None:
    """
    Whatever a policy does: every request gets exactly its tokens in order, the KV cache is
    never overfull, simulated time is the sum of its parts, and the scores are those of the
    token times.
    """
    requests = make_requests(n, seed)
    engine = make_engine(
        preemption=preemption,
        capacity_tokens=capacity_tokens,
        token_budget=token_budget,
        recompute_hit_share=hit_share,
        reserve_full_context=reserve_full_context,
        watermark=watermark,
    )
    policy = Storm(seed) if storm else FCFS()
    seen: list[Snapshot] = []
    result = simulate(
        requests,
        engine,
        policy,
        capture=lambda snapshot, _: seen.append(snapshot),
        record_tokens=True,
        record_timeline=True,
    )

    assert result.token_times_s is not None and result.timeline is not None
    for i in range(n):
        times = result.token_times_s[i]
        if result.rejected[i]:
            assert times.size == 0 and math.isnan(result.first_token_s[i])
            assert result.qoe_area[i] == result.qoe_delay[i] == result.qoe_window[i] == 0
            continue
        assert times.size == requests.output_tokens[i]
        assert (np.diff(times) > 0).all()
        assert times[0] == result.first_token_s[i] > 0
        assert times[-1] == result.completion_s[i]
        target = qoe.QoETarget(requests.ttft_s[i], requests.tds[i])
        assert result.qoe_area[i] == pytest.approx(qoe.area(times, target), abs=1e-9)
        assert result.qoe_delay[i] == pytest.approx(qoe.delay(times, target), abs=1e-9)
        assert result.qoe_window[i] == pytest.approx(qoe.window(times, target), abs=1e-9)

    assert result.timeline.shape[0] == result.iterations
    assert (np.diff(result.timeline[:, 0]) > 0).all()
    assert (result.timeline[:, 3] <= capacity_tokens).all()
    assert (result.timeline[:, 1] <= engine.max_batch).all()
    assert (result.timeline[:, 1] + result.timeline[:, 2] <= token_budget).all()
    assert result.busy_s <= result.makespan_s + 1e-9
    delivered_s = np.concatenate(
        [requests.arrival_s[i] + times for i, times in enumerate(result.token_times_s)]
    )
    last_s = requests.arrival_s[-1]
    assert result.tokens_by_last_arrival == (delivered_s <= last_s).sum()
    for snapshot in seen:
        assert snapshot.kv_tokens.sum() <= capacity_tokens
        assert (snapshot.digested <= snapshot.generated_tokens + 1e-9).all()
        assert (snapshot.generated_tokens < requests.output_tokens[snapshot.request_id]).all()
        resident = (snapshot.state == State.RUNNING) | (snapshot.state == State.HELD)
        assert (snapshot.kv_tokens[~resident] == 0).all()
        assert (np.diff(snapshot.arrival_s) >= 0).all()


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_same_seed_same_run(preemption: str) -> None:
    """Two runs with the same input agree to the last bit."""
    runs = [
        simulate(make_requests(60, 3), make_engine(preemption=preemption), Storm(5))
        for _ in range(2)
    ]
    assert (runs[0].qoe_window == runs[1].qoe_window).all()
    assert runs[0].iterations == runs[1].iterations
    assert runs[0].makespan_s == runs[1].makespan_s


def test_one_request_by_hand() -> None:
    """A lone request's token times are the latency model's, chunk by chunk."""
    requests = Requests(
        arrival_s=np.array([0.0]),
        prompt_tokens=np.array([100]),
        output_tokens=np.array([3]),
        ttft_s=np.array([1.0]),
        tds=np.array([5.0]),
    )
    result = simulate(requests, make_engine(token_budget=64), FCFS(), record_tokens=True)

    first = LATENCY.iteration_s(0, 0, 64) + LATENCY.iteration_s(0, 0, 36)
    second = first + LATENCY.iteration_s(1, 101)
    third = second + LATENCY.iteration_s(1, 102)
    assert result.token_times_s is not None
    np.testing.assert_allclose(result.token_times_s[0], [first, second, third], rtol=1e-12)
    assert result.iterations == 4
    assert result.makespan_s == pytest.approx(third)


@pytest.mark.parametrize(("preemption", "swaps"), [("swap", True), ("recompute", False)])
def test_newest_request_is_the_victim(preemption: str, swaps: bool) -> None:
    """When blocks run out under FCFS, the newest request is preempted and pays to return."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.0]),
        prompt_tokens=np.array([32, 32]),
        output_tokens=np.array([40, 40]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )
    engine = make_engine(
        preemption=preemption, capacity_tokens=96, block_tokens=16, swap_s_per_token=0.01
    )
    result = simulate(requests, engine, FCFS(), record_timeline=True)

    assert result.preemptions.tolist() == [0, 1]
    assert result.completion_s[0] < result.completion_s[1]
    # 48 KV tokens each when the sixth block is full: swapped out, and in again later, or
    # computed a second time.
    assert result.timeline is not None
    prefill = int(result.timeline[:, 2].sum())
    assert prefill == (64 if swaps else 64 + 49)
    batches = result.timeline[:, 1]
    decode_s = LATENCY.base_s * result.iterations + LATENCY.per_request_s * batches.sum()
    swap_s = 2 * 48 * 0.01 if swaps else 0.0
    context_s = result.busy_s - decode_s - swap_s - LATENCY.per_prefill_token_s * prefill
    assert 0 < context_s < 40 * 2 * 73 * LATENCY.per_context_token_s


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.3, 0), (0.5, 16), (0.99, 32), (1.0, 48)])
def test_prefix_cache_hits_spare_whole_blocks(share: float, kept: int) -> None:
    """A victim that comes back computes what the prefix cache lost, in whole blocks."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.0]),
        prompt_tokens=np.array([32, 32]),
        output_tokens=np.array([40, 40]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )
    engine = make_engine(
        preemption="recompute",
        capacity_tokens=96,
        block_tokens=16,
        swap_s_per_token=0.01,  # of no account when recomputing
        recompute_hit_share=share,
    )
    seen: list[Snapshot] = []

    class Watching(FCFS):
        def decide(self, snapshot: Snapshot) -> Decision:
            seen.append(snapshot)
            return Decision(replan_after=1)

    result = simulate(requests, engine, Watching(), record_timeline=True)
    assert result.preemptions.tolist() == [0, 1]
    assert result.timeline is not None
    # With everything cached but the last token, coming back is a decode like any other.
    assert int(result.timeline[:, 2].sum()) == 64 + (49 - kept if kept < 48 else 0)
    waiting = [s for s in seen if (s.state == State.PREEMPTED).any()]
    lost = waiting[0].restore_s[waiting[0].state == State.PREEMPTED]
    computed = 49 - kept if kept < 48 else 0
    assert lost == pytest.approx([computed * LATENCY.per_prefill_token_s])


def first_tokens(prompts: list[int], **engine: object) -> tuple[list[float], int]:
    """When requests that come at once get their first tokens, in iterations; preemptions."""
    n = len(prompts)
    requests = Requests(np.zeros(n), np.array(prompts), np.full(n, 40), np.ones(n), np.full(n, 5.0))
    latency = LatencyModel(1.0, 0.0, 0.0, 0.0)
    result = simulate(requests, make_engine(latency=latency, **engine), FCFS())
    return result.first_token_s.tolist(), int(result.preemptions.sum())


def test_a_request_enters_only_if_its_whole_context_fits() -> None:
    """
    A prompt of 100 tokens computes 24 in the first iteration, but is let in only with room for all.

    vLLM's rule since 0.20. Without it the prompt enters at once, takes the blocks that the first
    request needs next, and is preempted over and over.
    """
    engine = {"capacity_tokens": 160, "token_budget": 64, "preemption": "recompute"}
    # 40 tokens need 3 of 10 blocks, 100 need 7: they fit together. 120 need 8 and wait.
    assert first_tokens([40, 100], **engine)[0] == [1.0, 3.0]
    assert first_tokens([40, 120], **engine) == ([1.0, 42.0], 0)
    assert first_tokens([40, 120], reserve_full_context=False, **engine)[1] > 5


def test_a_preempted_request_enters_only_if_all_it_has_fits() -> None:
    """Its reply so far counts, the prefix cache's share of it too: those blocks are taken anew."""
    requests = Requests(
        np.zeros(2), np.array([32, 32]), np.array([60, 60]), np.ones(2), np.full(2, 5.0)
    )
    for hit_share in (0.0, 1.0):
        engine = make_engine(
            capacity_tokens=96,
            token_budget=16,
            preemption="recompute",
            recompute_hit_share=hit_share,
        )
        seen: list[Snapshot] = []

        class Watching(FCFS):
            def decide(self, snapshot: Snapshot) -> Decision:
                seen.append(snapshot)  # noqa: B023
                return Decision(replan_after=1)

        result = simulate(requests, engine, Watching())
        assert result.preemptions.tolist() == [0, 1]
        # It needs 4 of the 6 blocks, and the first request has 4 or more until it is done.
        both = [s for s in seen if s.num_requests == 2]
        away = [s for s in both if s.state[1] == State.PREEMPTED]
        assert away[-1].generated_tokens[0] == 59


def test_the_watermark_binds_while_others_run() -> None:
    """A share of the blocks stays free when a request enters, unless it is alone."""
    engine = {"capacity_tokens": 159 * 16, "token_budget": 2048, "max_batch": 2}
    assert first_tokens([600, 1800], **engine) == ([1.0, 2.0], 0)
    assert first_tokens([600, 1800], watermark=0.1, **engine) == ([1.0, 41.0], 0)
    assert first_tokens([2400], watermark=0.9, **engine) == ([2.0], 0)


def test_long_prompts_are_not_let_in_too_early() -> None:
    """Under overload with recompute the rule saves FCFS most of its preemptions, and time."""
    rng = np.random.default_rng(3)
    n = 60
    requests = Requests(
        np.linspace(0.0, 3.0, n),
        rng.integers(200, 1500, n),
        rng.integers(20, 120, n),
        np.ones(n),
        np.full(n, 5.0),
    )
    engine = {"capacity_tokens": 4000, "token_budget": 256, "preemption": "recompute"}
    new, old = (
        simulate(requests, make_engine(reserve_full_context=rule, **engine), FCFS())
        for rule in (True, False)
    )
    assert new.preemptions.sum() < 0.6 * old.preemptions.sum()
    assert new.makespan_s < 0.95 * old.makespan_s


def test_never_fitting_request_is_rejected() -> None:
    """Requests beyond the KV cache or the model's limit score 0 and hurt nobody else."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.1, 0.2, 0.3]),
        prompt_tokens=np.array([500, 10, 305, 250]),
        output_tokens=np.array([100, 5, 10, 300]),
        ttft_s=np.ones(4),
        tds=np.full(4, 5.0),
    )
    result = simulate(requests, make_engine(max_context_tokens=305), FCFS())
    assert result.rejected.tolist() == [True, False, True, False]
    assert result.qoe_window.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_reply_ends_at_the_models_limit() -> None:
    """As in vLLM, a reply is cut where prompt and reply reach ``max_context_tokens``."""
    requests = Requests(
        arrival_s=np.zeros(3),
        prompt_tokens=np.array([99, 60, 60]),
        output_tokens=np.array([50, 50, 40]),
        ttft_s=np.ones(3),
        tds=np.full(3, 5.0),
    )
    result = simulate(requests, make_engine(max_context_tokens=100), FCFS(), record_tokens=True)
    assert not result.rejected.any()
    assert result.output_tokens.tolist() == [1, 40, 40]
    assert [times.size for times in result.token_times_s or []] == [1, 40, 40]


def test_iterations_are_shown() -> None:
    """``on_iteration`` sees each iteration once, and changes nothing."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.0, 9.0]),
        prompt_tokens=np.array([32, 32, 5]),
        output_tokens=np.array([40, 40, 3]),
        ttft_s=np.ones(3),
        tds=np.full(3, 5.0),
    )
    engine = make_engine(preemption="recompute", capacity_tokens=96, block_tokens=16)
    seen: list[Iteration] = []
    result = simulate(
        requests, engine, FCFS(), record_tokens=True, record_timeline=True, on_iteration=seen.append
    )
    plain = simulate(requests, engine, FCFS(), record_tokens=True, record_timeline=True)
    assert result.timeline is not None and plain.timeline is not None
    assert np.array_equal(result.timeline, plain.timeline)
    assert [one.time_s for one in seen] == plain.timeline[:, 0].tolist()
    assert [int(one.blocks.sum()) * 16 for one in seen] == plain.timeline[:, 3].tolist()
    computed = plain.timeline[:, 1] + plain.timeline[:, 2]
    assert [one.tokens.sum() for one in seen] == computed.tolist()
    assert seen[-1].generated_tokens.tolist() == [40, 40, 3]
    assert seen[-1].preemptions.tolist() == result.preemptions.tolist() == [0, 1, 0]


def test_rejected_requests_are_not_seen() -> None:
    """The scheduler never hears of a request that the front-end refused."""
    requests = Requests(
        arrival_s=np.array([0.0, 0.1]),
        prompt_tokens=np.array([500, 10]),
        output_tokens=np.array([5, 5]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )
    seen: list[int] = []
    simulate(
        requests,
        make_engine(max_context_tokens=305),
        FCFS(),
        capture=lambda snapshot, _: seen.append(snapshot.requests_seen),
    )
    assert set(seen) == {1}


def test_solver_time_is_charged() -> None:
    """Every second charged for deciding appears on the simulated clock."""

    class Thinker(Storm):
        def decide(self, snapshot: Snapshot) -> Decision:
            from andes_opt.instance import GainTable, Instance
            from andes_opt.plan import make_plan

            n = snapshot.num_requests
            serve = np.ones(n, dtype=bool)
            instance = Instance(np.ones(n, dtype=int), n, n, n, GainTable(np.ones((1, n)), n))
            return Decision(
                action=serve.astype(np.int8),
                order=np.arange(n),
                plan=make_plan(instance, serve, n),
                replan_after=1,
            )

    requests, engine = make_requests(20, 1), make_engine(max_batch=20)
    free = simulate(requests, engine, Thinker(0))
    slow = simulate(requests, engine, Thinker(0), solver_time=0.05)
    assert slow.charged_s == pytest.approx(0.05 * slow.solves)
    assert slow.makespan_s > free.makespan_s
    assert slow.busy_s + slow.charged_s <= slow.makespan_s + 1e-9
    assert simulate(requests, engine, Thinker(0), solver_time="measured").charged_s > 0
    for nonsense in ("slow", None, [1], -1.0, math.inf):
        with pytest.raises(ValueError, match="free, measured, or seconds"):
            simulate(requests, engine, Thinker(0), solver_time=nonsense)  # type: ignore[arg-type]


def test_policy_that_serves_nobody_is_an_error() -> None:
    """An engine left empty for good ends with a sentence, not with an endless loop."""

    class Nobody(Storm):
        def decide(self, snapshot: Snapshot) -> Decision:
            n = snapshot.num_requests
            return Decision(action=np.zeros(n, dtype=np.int8), order=np.arange(n))

    with pytest.raises(Starved, match="served nobody"):
        simulate(make_requests(3, 1), make_engine(), Nobody(0))


@pytest.mark.parametrize(
    ("action", "order", "replan_after", "message"),
    [
        ([1, 1], [0, 0], 1, "every request once"),
        ([1, 1], [0, 2], 1, "every request once"),
        ([1, 1], [0], 1, "every request once"),
        ([1, 7], [0, 1], 1, "known actions"),
        ([1], [0], 1, "1 of 2 requests"),
        ([1, 1], [0, 1], 0, "replan_after = 0"),
        ([1, 1], [0, 1], 1.5, "replan_after = 1.5"),
        ([1, 1], [0, 1], None, "replan_after = None"),
        ([1, 257], [0, 1], 1, "known actions"),
        ([1, 2**80], [0, 1], 1, "action of object"),
        ([1, 0.5], [0, 1], 1, "action of float64"),
        ([1, math.nan], [0, 1], 1, "action of float64"),
        ([1, math.inf], [0, 1], 1, "known actions"),
        ([[1, 1]], [0, 1], 1, r"action of shape \(1, 2\)"),
        ([1, 1], ["a", "b"], 1, "order of <U1"),
    ],
)
def test_malformed_decisions_are_refused(
    action: list[int], order: list[int], replan_after: int, message: str
) -> None:
    """A decision that does not fit its snapshot ends the run with a sentence."""
    malformed = Decision(action, order, replan_after=replan_after)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        simulate(two_requests(), make_engine(), Fixed(malformed))


def test_held_requests_keep_their_places() -> None:
    """
    Nobody takes the place of a held request: neither a decision nor, between decisions, the engine.

    A regression test: held requests took no place, so that the simulator played plans that vLLM
    can't.
    """

    class HoldTheFirst(Storm):
        """Holds request 0 while others are left, and serves so many of them."""

        def __init__(self, serve: int) -> None:
            super().__init__(0)
            self._serve = serve

        def decide(self, snapshot: Snapshot) -> Decision:
            n = snapshot.num_requests
            first = snapshot.request_id[0] == 0
            if not (first and snapshot.state[0] in (State.RUNNING, State.HELD) and n > 1):
                return Decision()
            action = np.zeros(n, dtype=np.int8)
            action[0] = Action.HOLD
            action[1 : 1 + self._serve] = Action.SERVE
            return Decision(action, np.arange(n), replan_after=NEVER)

    requests = Requests(np.zeros(6), np.full(6, 20), np.arange(10, 16), np.ones(6), np.full(6, 5.0))
    result = simulate(requests, make_engine(max_batch=3), HoldTheFirst(2), record_timeline=True)
    assert result.timeline is not None
    assert np.isfinite(result.completion_s).all()
    held = result.timeline[:, TIMELINE_COLUMNS.index("held")]
    assert held.max() == 1
    assert (result.timeline[:, 1] + held).max() == 3
    with pytest.raises(ValueError, match="serves 3 and holds 1 requests, with 3 places"):
        simulate(requests, make_engine(max_batch=3), HoldTheFirst(3))


@pytest.mark.parametrize("answer", [None, np.ones(2, dtype=np.int8)])
def test_what_is_no_decision_is_refused(answer: object) -> None:
    """A policy that answers with something else is named in one sentence."""
    with pytest.raises(ValueError, match=r"Fixed decided \w+, not a Decision\."):
        simulate(two_requests(), make_engine(), Fixed(answer))


@pytest.mark.parametrize(
    ("action", "order"),
    [
        ([Action.SERVE, Action.SERVE], [0, 1]),
        (np.ones(2, dtype=bool), np.array([0, 1], dtype=np.int32)),
        (np.ones(2), np.array([0.0, 1.0])),
        (np.ones((2, 2), dtype=np.int8)[:, 0], np.arange(4)[::2] // 2),
    ],
)
def test_decisions_in_other_types_mean_the_same(action: object, order: object) -> None:
    """Lists, switches, whole floats and strided views decide what int8 and int64 would."""
    plain = Fixed(Decision(np.ones(2, dtype=np.int8), np.arange(2), replan_after=99))
    other = Fixed(Decision(action, order, replan_after=99))  # type: ignore[arg-type]
    results = [simulate(two_requests(), make_engine(), policy) for policy in (plain, other)]
    assert np.array_equal(results[0].completion_s, results[1].completion_s)


class Fixed:
    """Answers every snapshot of :func:`two_requests` alike."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def decide(self, snapshot: Snapshot) -> Decision:
        return self._answer  # type: ignore[return-value]

    def finished(self, request_id: int) -> None:
        pass


def two_requests() -> Requests:
    return Requests(
        arrival_s=np.zeros(2),
        prompt_tokens=np.array([20, 20]),
        output_tokens=np.array([5, 5]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )


def test_policy_hears_of_every_finish() -> None:
    """``finished`` is called once for each request that a policy has seen, the last included."""

    class Asked(Storm):
        def decide(self, snapshot: Snapshot) -> Decision:
            return Decision(replan_after=3)

    policy = Asked(1)
    simulate(make_requests(30, 2), make_engine(), policy)
    assert sorted(policy.left) == list(range(30))


@pytest.mark.parametrize("plan", [False, True])
@pytest.mark.parametrize("replan_after", [10**9, NEVER + 1, sys.maxsize, 2**80])
def test_an_arrival_asks_again_however_long_a_plan_was_meant_to_last(
    plan: bool, replan_after: int
) -> None:
    """Only a pass-through for exactly NEVER is final: any other number waits for an event."""

    class Patient(Storm):
        asked = 0

        def decide(self, snapshot: Snapshot) -> Decision:
            self.asked += 1
            n = snapshot.num_requests
            if not plan:
                return Decision(replan_after=replan_after)
            return Decision(np.ones(n, dtype=np.int8), np.arange(n), replan_after=replan_after)

    policy = Patient(0)
    result = simulate(make_requests(20, 3), make_engine(), policy)
    assert np.isfinite(result.completion_s).all()
    assert policy.asked >= 20


def test_a_plan_is_never_final() -> None:
    """A plan for NEVER is asked again at the next event, for it knows no newcomers."""

    class Planned(Storm):
        def decide(self, snapshot: Snapshot) -> Decision:
            n = snapshot.num_requests
            return Decision(np.ones(n, dtype=np.int8), np.arange(n), replan_after=NEVER)

    result = simulate(make_requests(20, 3), make_engine(max_batch=20), Planned(0))
    assert np.isfinite(result.completion_s).all()


def test_held_request_keeps_its_cache_and_computes_nothing() -> None:
    """HOLD leaves the KV where it is, delivers no token, and costs nothing to undo."""

    class HoldFirst(Storm):
        def __init__(self) -> None:
            super().__init__(0)
            self.kv: list[int] = []
            self.tokens: list[int] = []

        def decide(self, snapshot: Snapshot) -> Decision:
            n = snapshot.num_requests
            action = np.full(n, Action.SERVE, dtype=np.int8)
            if snapshot.request_id[0] == 0 and 5 <= snapshot.generated_tokens[0] <= 6 and n > 1:
                action[0] = Action.HOLD
                self.kv.append(int(snapshot.kv_tokens[0]))
                self.tokens.append(int(snapshot.generated_tokens[0]))
            return Decision(action=action, order=np.arange(n))

    requests = Requests(
        arrival_s=np.zeros(2),
        prompt_tokens=np.array([20, 20]),
        output_tokens=np.array([10, 30]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )
    policy = HoldFirst()
    result = simulate(requests, make_engine(), policy)
    assert set(policy.kv) == {32} and set(policy.tokens) == {5}
    assert result.preemptions.tolist() == [0, 0]
    assert result.completion_s[0] > result.completion_s[1]


def test_round_robin_takes_turns() -> None:
    """With room for one request, round-robin alternates every quantum."""
    requests = Requests(
        arrival_s=np.zeros(2),
        prompt_tokens=np.array([16, 16]),
        output_tokens=np.array([40, 40]),
        ttft_s=np.ones(2),
        tds=np.full(2, 5.0),
    )
    result = simulate(requests, make_engine(max_batch=1), RoundRobin(quantum_tokens=10))
    assert result.preemptions.tolist() == [3, 3]


def test_without_compilation_the_results_are_the_same() -> None:
    """With NUMBA_DISABLE_JIT the loop runs as plain Python, to the same last bit (broken once)."""
    script = """
import numpy as np
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.policy.round_robin import RoundRobin
from andes_opt.simulator import TIMELINE_COLUMNS, simulate
from andes_opt.workload import Poisson

engine = EngineProfile("tiny", LatencyModel(0.02, 1e-3, 1e-6, 1e-4), capacity_tokens=3000)
result = simulate(Poisson(rate=5.0, requests=12).generate(1), engine, RoundRobin(20))
print(result.iterations, result.preemptions.sum(), result.qoe_window.sum().hex())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "NUMBA_DISABLE_JIT": switch},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for switch in ("0", "1")
    }
    assert len(outputs) == 1


def test_memory_is_a_fixed_number_of_bytes_per_request() -> None:
    """At a load that is sustained, twice the requests take twice the memory, and little of it."""
    peaks = []
    for n in (2000, 4000):
        requests = make_requests(n, seed=1, rate=1.0)
        tracemalloc.start()
        result = simulate(requests, make_engine(), FCFS())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert result.iterations > n
        peaks.append(peak)
    assert peaks[1] < 400 * 4000
    assert peaks[1] < 2.2 * peaks[0]
