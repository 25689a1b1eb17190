"""
A simulated serving engine: the same policies as in vLLM, thousands of times faster.

The engine batches continuously, pages its KV cache in blocks, prefills in chunks under a
token budget and preempts by swapping or recomputing (:mod:`andes_opt.engine_loop`). Its default
is vLLM's first-come-first-served; a policy sees a :class:`~andes_opt.snapshot.Snapshot`
and answers with a :class:`~andes_opt.snapshot.Decision`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from andes_opt import engine_loop
from andes_opt.checks import whole
from andes_opt.qoe import ideal_area_capped
from andes_opt.snapshot import NEVER, Decision, Snapshot, Starved, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from andes_opt.engine import EngineProfile
    from andes_opt.snapshot import Policy
    from andes_opt.workload import Requests

_NO_ACTION = np.empty(0, dtype=np.int8)
_NO_ORDER = np.empty(0, dtype=np.int64)
_SAMPLES_PER_CHUNK = 4096

#: Columns of :attr:`SimulationResult.timeline`.
TIMELINE_COLUMNS = (
    "time_s",
    "decoding",
    "prefill_tokens",
    "kv_tokens",
    "waiting",
    "held",
)


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """
    What became of each request, and what the run took. Arrays are (n,), in arrival order.

    Parameters
    ----------
    arrival_s, prompt_tokens, output_tokens, ttft_s, tds
        The requests, as given.
    rejected
        True for requests that can never fit; they score 0.
    first_token_s, completion_s
        Times of the first and the last token, seconds since the request's arrival; NaN
        for rejected requests.
    qoe_area, qoe_delay, qoe_window
        The three QoE scores (docs/model.md, Quality of experience).
    preemptions
        How often each request was preempted.
    iterations
        Engine iterations.
    makespan_s
        Simulated time of the last token, 0 if there is none.
    busy_s
        Simulated time spent in iterations; the rest of the makespan the engine was idle
        or waited for its scheduler.
    tokens_by_last_arrival
        Tokens delivered until the last request arrived.
    decisions, solves
        Times the policy was asked, and times its decision carried a solver's plan.
    decide_s, solver_s
        Wall-clock seconds in the policy in all, and in its solver (build and solve).
    charged_s
        Simulated seconds charged for deciding.
    wall_s
        Wall-clock seconds of the simulation.
    token_times_s
        Token times since each request's arrival, one array per request; None unless
        recorded.
    timeline
        One row per iteration, columns :data:`TIMELINE_COLUMNS`; None unless recorded.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    tds: NDArray[np.float64]
    rejected: NDArray[np.bool_]
    first_token_s: NDArray[np.float64]
    completion_s: NDArray[np.float64]
    qoe_area: NDArray[np.float64]
    qoe_delay: NDArray[np.float64]
    qoe_window: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    iterations: int
    makespan_s: float
    busy_s: float
    tokens_by_last_arrival: int
    decisions: int
    solves: int
    decide_s: float
    solver_s: float
    charged_s: float
    wall_s: float
    token_times_s: list[NDArray[np.float64]] | None = None
    timeline: NDArray[np.float64] | None = None


def simulate(
    requests: Requests,
    engine: EngineProfile,
    policy: Policy,
    *,
    solver_time: Literal["free", "measured"] | float = "free",
    oracle: bool = False,
    capture: Callable[[Snapshot, Decision], None] | None = None,
    record_tokens: bool = False,
    record_timeline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """
    Serve all requests to their last token.

    Parameters
    ----------
    requests
        What arrives when.
    engine
        The engine's profile.
    policy
        A fresh policy object.
    solver_time
        What deciding costs on the simulated clock: ``"free"``, ``"measured"`` (the wall
        clock of each ``decide`` call; runs are then no longer deterministic), or seconds
        per decision that carries a solver's plan.
    oracle
        Whether snapshots carry the true output lengths.
    capture
        Called with every snapshot and the decision taken on it.
    record_tokens, record_timeline
        Whether to keep every token's time, and a row per iteration.
    progress
        Called now and then with the number of requests finished so far.

    Returns
    -------
    SimulationResult
        Deterministic for the same input, unless ``solver_time`` is ``"measured"`` or a
        solver has a time limit.

    Raises
    ------
    ValueError
        If ``solver_time`` is not understood, or a decision does not fit its snapshot.
    Starved
        If the policy leaves the engine empty for good while requests wait.
    """
    charge = _charge(solver_time)
    started = time.perf_counter()
    state = _EngineState(requests, engine, record_tokens, record_timeline)
    decisions = solves = 0
    decide_s = solver_s = charged_s = 0.0

    while (event := state.run()) != engine_loop.DONE:
        if event == engine_loop.STARVED:
            raise Starved(
                f"{type(policy).__name__} served nobody for {engine_loop.MAX_IDLE_STEPS} steps in "
                f"a row while {state.num_active} requests waited."
            )
        for request_id in state.take_finished():
            policy.finished(request_id)

        snapshot = state.snapshot(oracle)
        before = time.perf_counter()
        decision = policy.decide(snapshot)
        elapsed = time.perf_counter() - before
        if not isinstance(decision, Decision):
            raise ValueError(
                f"{type(policy).__name__} decided {type(decision).__name__}, not a Decision."
            )
        decide_s += elapsed
        decisions += 1
        cost = elapsed if charge is None else 0.0
        if decision.plan is not None:
            solves += 1
            solver_s += decision.plan.build_s + decision.plan.solve_s
            cost = elapsed if charge is None else charge
        charged_s += cost

        if capture is not None:
            capture(snapshot, decision)
        state.apply(decision, cost)
        if progress is not None:
            progress(state.num_finished)

    for request_id in state.take_finished():
        policy.finished(request_id)
    if progress is not None:
        progress(state.num_finished)
    return state.result(
        decisions=decisions,
        solves=solves,
        decide_s=decide_s,
        solver_s=solver_s,
        charged_s=charged_s,
        wall_s=time.perf_counter() - started,
    )


def _charge(solver_time: str | float) -> float | None:
    """Simulated seconds per solve; None stands for the measured time."""
    if solver_time == "free":
        return 0.0
    if solver_time == "measured":
        return None
    try:
        seconds = float(solver_time)
    except (TypeError, ValueError):
        seconds = -1.0
    if not (np.isfinite(seconds) and seconds >= 0):
        raise ValueError(
            f"solver_time = {solver_time!r} not understood: need free, measured, or seconds >= 0."
        )
    return seconds


def _integers(name: str, values: ArrayLike, dtype: type[np.signedinteger]) -> NDArray[Any]:
    """Part of a decision as the kernel takes it: a list will do, fractions will not."""
    array = np.asarray(values)
    if array.dtype != dtype:
        whole_numbers = array.dtype.kind in "biu" or (
            array.dtype.kind == "f" and bool((array == np.floor(array)).all())
        )
        if not whole_numbers:
            raise ValueError(f"a decision's {name} of {array.dtype} not understood: need integers.")
        # Clipped, lest 257 turn into 1; numbers of requests are exact as floats.
        most = min(np.iinfo(dtype).max, 2**53)
        array = array.astype(np.float64).clip(-1, most).astype(dtype)
    if array.ndim != 1:
        raise ValueError(f"a decision's {name} of shape {array.shape} not understood: need (n,).")
    return np.ascontiguousarray(array)


class _EngineState:
    """The kernel's arrays, and the views of them that Python needs."""

    def __init__(
        self, requests: Requests, engine: EngineProfile, record_tokens: bool, record_timeline: bool
    ) -> None:
        n = requests.arrival_s.size
        self._requests = requests
        self._engine = engine
        self._ints = np.zeros((engine_loop.NUM_INTS, n), dtype=np.int64)
        self._floats = np.zeros((engine_loop.NUM_FLOATS, n))
        self._ints[engine_loop.PROMPT] = requests.prompt_tokens
        self._ints[engine_loop.OUTPUT] = requests.output_tokens
        self._floats[engine_loop.ARRIVAL] = requests.arrival_s
        self._floats[engine_loop.TTFT] = requests.ttft_s
        self._floats[engine_loop.TDS] = requests.tds

        total = requests.prompt_tokens + requests.output_tokens
        blocks = -(-total // engine.block_tokens)
        rejected = (blocks > engine.num_blocks) | (total > engine.max_context_tokens)
        self._ints[engine_loop.STATE] = np.where(rejected, engine_loop.REJECTED, engine_loop.FUTURE)
        self._rejected = rejected

        offsets = np.concatenate(([0], np.cumsum(requests.output_tokens)))
        self._offsets = offsets
        self._ints[engine_loop.TOKEN_OFFSET] = offsets[:-1]
        self._token_times = np.full(int(offsets[-1]) if record_tokens else 0, np.nan)
        self._record_tokens = record_tokens

        self._active = np.empty(n, dtype=np.int64)
        self._running = np.empty(n, dtype=np.int64)
        self._admit = np.empty(n, dtype=np.int64)
        chunk = _SAMPLES_PER_CHUNK if record_timeline else 0
        self._samples = np.zeros((chunk, engine_loop.SAMPLE_COLUMNS))
        self._timeline: list[NDArray[np.float64]] = []

        latency = engine.latency
        self._scalars = np.zeros(engine_loop.NUM_SCALARS, dtype=np.int64)
        self._scalars[engine_loop.NUM_BLOCKS] = self._scalars[engine_loop.FREE_BLOCKS] = (
            engine.num_blocks
        )
        self._scalars[engine_loop.BLOCK_TOKENS] = engine.block_tokens
        self._scalars[engine_loop.MAX_BATCH] = engine.max_batch
        self._scalars[engine_loop.TOKEN_BUDGET] = engine.token_budget
        self._scalars[engine_loop.SWAPS] = engine.preemption == "swap"
        self._scalars[engine_loop.WAIT_HEAD] = self._scalars[engine_loop.WAIT_TAIL] = -1
        self._clock = np.zeros(engine_loop.NUM_CLOCK)
        self._clock[engine_loop.BASE_S] = latency.base_s
        self._clock[engine_loop.REQUEST_S] = latency.per_request_s
        self._clock[engine_loop.CONTEXT_S] = latency.per_context_token_s
        self._clock[engine_loop.PREFILL_S] = latency.per_prefill_token_s
        self._clock[engine_loop.SWAP_S] = engine.swap_s_per_token
        self._clock[engine_loop.HIT_SHARE] = engine.recompute_hit_share
        self._known: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def num_active(self) -> int:
        """Requests that have arrived and are not finished."""
        return int(self._scalars[engine_loop.NUM_ACTIVE])

    @property
    def num_finished(self) -> int:
        """Requests finished so far."""
        return int(self._scalars[engine_loop.NUM_FINISHED])

    def run(self) -> int:
        """Iterate until the policy is needed or all is done; the kernel's return code."""
        while True:
            event = int(
                engine_loop.run(
                    self._ints,
                    self._floats,
                    self._scalars,
                    self._clock,
                    self._active,
                    self._running,
                    self._admit,
                    self._token_times,
                    self._samples,
                )
            )
            if event == engine_loop.SAMPLES_FULL or event == engine_loop.DONE:
                count = int(self._scalars[engine_loop.NUM_SAMPLES])
                self._timeline.append(self._samples[:count].copy())
                self._scalars[engine_loop.NUM_SAMPLES] = 0
            if event != engine_loop.SAMPLES_FULL:
                return event

    def take_finished(self) -> list[int]:
        """Numbers of the requests that finished since the last snapshot."""
        states = self._ints[engine_loop.STATE, self._known]
        return [int(i) for i in self._known[states == engine_loop.FINISHED]]

    def snapshot(self, oracle: bool) -> Snapshot:
        """The engine now, as a policy may see it."""
        n = self.num_active
        ints = np.empty((8, n), dtype=np.int64)
        floats = np.empty((6, n))
        engine_loop.gather(
            self._ints, self._floats, self._scalars, self._clock, self._active, ints, floats
        )
        self._known = ints[0]
        return Snapshot(
            time_s=float(self._clock[engine_loop.NOW]),
            request_id=ints[0],
            arrival_s=floats[0],
            prompt_tokens=ints[1],
            generated_tokens=ints[2],
            kv_tokens=ints[3],
            need_tokens=ints[4],
            state=ints[7].astype(np.int8),
            ttft_s=floats[1],
            tds=floats[2],
            delivered=ints[5],
            digested=floats[3],
            area=floats[4],
            preemptions=ints[6],
            restore_s=floats[5],
            capacity_tokens=self._engine.num_blocks * self._engine.block_tokens,
            block_tokens=self._engine.block_tokens,
            # Each running request takes at least a token of the budget.
            max_batch=min(self._engine.max_batch, self._engine.token_budget),
            token_budget=self._engine.token_budget,
            latency=self._engine.latency,
            requests_seen=int(self._scalars[engine_loop.NEXT_ARRIVAL]),
            preemptions_seen=int(self._scalars[engine_loop.PREEMPTIONS_SEEN]),
            oracle_output_tokens=self._ints[engine_loop.OUTPUT, ints[0]] if oracle else None,
        )

    def apply(self, decision: Decision, cost_s: float) -> None:
        """Carry out a decision that took ``cost_s`` seconds on the simulated clock."""
        action, order = _NO_ACTION, _NO_ORDER
        if decision.action is not None:
            action = _integers("action", decision.action, np.int8)
            order = _integers("order", decision.order, np.int64)
            if action.size != self.num_active:
                raise ValueError(f"a decision on {action.size} of {self.num_active} requests.")
        whole("replan_after", decision.replan_after, 1)
        countdown = -1 if decision.final else min(int(decision.replan_after), NEVER)
        self._clock[engine_loop.NOW] += cost_s
        understood = engine_loop.apply(
            self._ints,
            self._scalars,
            self._clock,
            self._active,
            self._running,
            self._admit,
            action,
            order,
            countdown,
        )
        if not understood:
            raise ValueError(
                "a decision needs known actions and an order that lists every request once."
            )

    def result(
        self,
        *,
        decisions: int,
        solves: int,
        decide_s: float,
        solver_s: float,
        charged_s: float,
        wall_s: float,
    ) -> SimulationResult:
        """Everything about the finished run."""
        requests, rejected = self._requests, self._rejected
        area, delay, window = self._qoe()
        times = None
        if self._record_tokens:
            times = [
                self._token_times[a:b] if not out else np.empty(0)
                for a, b, out in zip(self._offsets[:-1], self._offsets[1:], rejected, strict=True)
            ]
        timeline = None
        if self._samples.shape[0]:
            timeline = np.concatenate(self._timeline)
            timeline[:, 3] *= self._engine.block_tokens
        return SimulationResult(
            arrival_s=requests.arrival_s,
            prompt_tokens=requests.prompt_tokens,
            output_tokens=requests.output_tokens,
            ttft_s=requests.ttft_s,
            tds=requests.tds,
            rejected=rejected,
            first_token_s=np.where(rejected, np.nan, self._floats[engine_loop.FIRST_TOKEN]),
            completion_s=np.where(rejected, np.nan, self._floats[engine_loop.LAST_TOKEN]),
            qoe_area=area,
            qoe_delay=delay,
            qoe_window=window,
            preemptions=self._ints[engine_loop.PREEMPTIONS].copy(),
            iterations=int(self._scalars[engine_loop.ITERATIONS]),
            makespan_s=float(
                np.max(
                    requests.arrival_s + self._floats[engine_loop.LAST_TOKEN],
                    initial=0.0,
                    where=~rejected,
                )
            ),
            busy_s=float(self._clock[engine_loop.BUSY_S]),
            tokens_by_last_arrival=int(self._scalars[engine_loop.TOKENS_BY_LAST_ARRIVAL]),
            decisions=decisions,
            solves=solves,
            decide_s=decide_s,
            solver_s=solver_s,
            charged_s=charged_s,
            wall_s=wall_s,
            token_times_s=times,
            timeline=timeline,
        )

    def _qoe(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The three definitions from the kernel's accumulators (as in qoe.QoEAccumulator)."""
        floats, n = self._floats, self._ints[engine_loop.OUTPUT]
        ttft_s, tds = floats[engine_loop.TTFT], floats[engine_loop.TDS]
        last = floats[engine_loop.LAST_TOKEN]

        ideal = np.array(
            [ideal_area_capped(t, f, s, k) for t, f, s, k in zip(last, ttft_s, tds, n, strict=True)]
        ).reshape(n.shape)
        area = np.divide(floats[engine_loop.AREA], ideal, out=np.ones_like(ideal), where=ideal > 0)

        due_sum = n * ttft_s + n * (n - 1) / (2 * tds)
        whole = n * floats[engine_loop.LAST_DIGEST] - due_sum
        late = floats[engine_loop.DIGEST_SUM] - due_sum
        # Sums of times carry rounding of their own size: below that, nothing was late.
        tiny = 1e-12 * np.maximum(1.0, floats[engine_loop.DIGEST_SUM])
        delay = 1 - np.divide(late, whole, out=np.zeros_like(late), where=whole > tiny)

        window = floats[engine_loop.WINDOW_AREA] * 2 * tds / (n.astype(np.float64) ** 2)
        served = ~self._rejected
        return tuple(np.where(served, np.clip(q, 0.0, 1.0), 0.0) for q in (area, delay, window))  # type: ignore[return-value]


# The kernel's codes continue snapshot.State; a change there must not go unnoticed here.
assert (engine_loop.WAITING, engine_loop.RUNNING, engine_loop.PREEMPTED, engine_loop.HELD) == (
    State.WAITING,
    State.RUNNING,
    State.PREEMPTED,
    State.HELD,
)
