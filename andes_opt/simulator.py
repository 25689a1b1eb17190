"""
A simulated serving engine: the same policies as in vLLM, thousands of times faster.

The engine batches continuously, pages its KV cache in blocks, prefills in chunks under a
token budget and preempts by swapping or recomputing (:mod:`andes_opt.engine_loop`). With
recomputing its rules are those of vLLM V1; V1 has no swapping, which is the engine of the Andes
paper. Its default is vLLM's first-come-first-served; a policy sees a
:class:`~andes_opt.snapshot.Snapshot` and answers with a :class:`~andes_opt.snapshot.Decision`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from andes_opt import engine_loop
from andes_opt.checks import whole
from andes_opt.engine import as_served
from andes_opt.engine_loop import Engine, Sample, SimulatedRequest
from andes_opt.request_state import columns, records, scores, snapshot_of
from andes_opt.snapshot import NEVER, Decision, Snapshot, Starved, check_places
from andes_opt.workload import REQUEST_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from andes_opt.engine import EngineProfile
    from andes_opt.snapshot import Policy
    from andes_opt.workload import Requests

_NO_ACTION = np.empty(0, dtype=np.int8)
_NO_ORDER = np.empty(0, dtype=np.int64)
_SAMPLES_PER_CHUNK = 4096
#: Fields of an engine profile that the engine loop has under the same name.
_PROFILE_FIELDS = (
    "num_blocks",
    "block_tokens",
    "max_batch",
    "token_budget",
    "max_context_tokens",
    "swap_s_per_token",
    "recompute_hit_share",
    "reserve_full_context",
    "watermark_blocks",
)

#: Columns of :attr:`SimulationResult.timeline`.
TIMELINE_COLUMNS = tuple(Sample.__annotations__)


@dataclass(frozen=True, slots=True, eq=False)
class Iteration:
    """
    One iteration of the simulated engine. Arrays are (n,), in arrival order.

    Parameters
    ----------
    time_s
        Its end, on the engine's clock.
    tokens
        Tokens of each request that it computed.
    blocks
        KV blocks that each request holds at its end.
    generated_tokens
        Tokens that each request has received by then.
    preemptions
        How often each request has been preempted by then.
    """

    time_s: float
    tokens: NDArray[np.int64]
    blocks: NDArray[np.int64]
    generated_tokens: NDArray[np.int64]
    preemptions: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SimulationResult:
    """
    What became of each request, and what the run took. Arrays are (n,), in arrival order.

    Parameters
    ----------
    arrival_s, prompt_tokens, output_tokens, ttft_s, tds
        The requests, as given, with replies that end at the model's limit
        (:func:`andes_opt.engine.as_served`).
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
    on_iteration: Callable[[Iteration], None] | None = None,
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
    on_iteration
        Called after every iteration that computed something; slow, for small runs.

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
    started = time.perf_counter()
    deciding = Deciding(seconds_per_solve(solver_time))
    state = _EngineState(requests, engine, record_tokens, record_timeline, on_iteration)
    while True:
        event = state.run()
        for request_id in state.take_finished():
            policy.finished(request_id)
        if progress is not None:
            progress(state.num_finished)
        if event == engine_loop.DONE:
            return state.result(deciding, time.perf_counter() - started)
        if event == engine_loop.STARVED:
            raise Starved(
                f"{type(policy).__name__} served nobody for {engine_loop.MAX_IDLE_STEPS} steps in "
                f"a row while {state.num_active} requests waited."
            )
        snapshot = state.snapshot(oracle)
        decision, cost_s = deciding.ask(policy, snapshot)
        if capture is not None:
            capture(snapshot, decision)
        state.apply(decision, cost_s)


def seconds_per_solve(solver_time: str | float) -> float | None:
    """
    Simulated seconds that a solve is charged.

    Parameters
    ----------
    solver_time
        As for :func:`simulate`.

    Returns
    -------
    float | None
        None for the measured time.

    Raises
    ------
    ValueError
        If ``solver_time`` is not understood.
    """
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


@dataclass(slots=True)
class Deciding:
    """
    Asks the policy, and counts what that takes.

    Parameters
    ----------
    charge_s
        Of :func:`seconds_per_solve`.
    decisions, solves, decide_s, solver_s, charged_s
        As in :class:`SimulationResult`.
    """

    charge_s: float | None
    decisions: int = 0
    solves: int = 0
    decide_s: float = 0.0
    solver_s: float = 0.0
    charged_s: float = 0.0

    def ask(self, policy: Policy, snapshot: Snapshot) -> tuple[Decision, float]:
        """The policy's decision, and the seconds to charge for it."""
        before_s = time.perf_counter()
        decision = policy.decide(snapshot)
        elapsed_s = time.perf_counter() - before_s
        if not isinstance(decision, Decision):
            raise ValueError(
                f"{type(policy).__name__} decided {type(decision).__name__}, not a Decision."
            )
        self.decisions += 1
        self.decide_s += elapsed_s
        cost_s = 0.0
        if decision.plan is not None:
            self.solves += 1
            self.solver_s += decision.plan.build_s + decision.plan.solve_s
            cost_s = self.charge_s or 0.0
        if self.charge_s is None:
            cost_s = elapsed_s
        self.charged_s += cost_s
        return decision, cost_s


def _integers(name: str, values: ArrayLike, dtype: type[np.signedinteger]) -> NDArray[Any]:
    """Part of a decision as the engine loop takes it. Lists and whole floats will do."""
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
    """The records of the engine loop, and the views of them that Python needs."""

    def __init__(
        self,
        requests: Requests,
        profile: EngineProfile,
        record_tokens: bool,
        record_timeline: bool,
        on_iteration: Callable[[Iteration], None] | None,
    ) -> None:
        self._workload, self._rejected = requests, rejected = as_served(requests, profile)
        self._profile = profile
        n = requests.num_requests
        # Requests that have come, without the rejected ones: the scheduler never hears of those.
        self._accepted = np.concatenate(([0], np.cumsum(~rejected)))

        self._requests = records(SimulatedRequest, n)
        for name in REQUEST_FIELDS:
            self._requests[name] = getattr(requests, name)
        self._requests["request_id"] = np.arange(n)
        self._requests["state"] = np.where(self._rejected, engine_loop.REJECTED, engine_loop.FUTURE)
        self._requests["token_offset"] = np.cumsum(requests.output_tokens) - requests.output_tokens
        self._known = np.empty(0, dtype=np.int64)  # requests that the policy has been shown

        self._engines = records(Engine, 1)
        self._engine = self._engines[0]  # a view
        for name in _PROFILE_FIELDS:
            self._engine[name] = getattr(profile, name)
        for item in fields(profile.latency):
            self._engine[item.name] = getattr(profile.latency, item.name)
        self._engine["swaps"] = profile.preemption == "swap"
        self._engine["free_blocks"] = profile.num_blocks
        self._engine["first_waiting"] = self._engine["last_waiting"] = -1

        self._active, running, admit = np.empty((3, n), dtype=np.int64)
        self._state = (self._requests, self._engines, self._active, running, admit)

        self._record_tokens = record_tokens
        tokens = int(requests.output_tokens.sum()) if record_tokens else 0
        self._token_times = np.full(tokens, np.nan)
        self._on_iteration = on_iteration
        self._record_timeline = record_timeline
        # The engine loop comes back when the samples are full: after each iteration if it is one.
        chunk = _SAMPLES_PER_CHUNK if on_iteration is None else 1
        self._samples = records(Sample, chunk if record_timeline or on_iteration else 0)
        self._timeline: list[NDArray[np.void]] = []

    @property
    def _places(self) -> int:
        """Places in the batch; each running request takes at least a token of the budget."""
        return min(self._profile.max_batch, self._profile.token_budget)

    @property
    def num_active(self) -> int:
        """Requests that have arrived and are not finished."""
        return int(self._engine["num_active"])

    @property
    def num_finished(self) -> int:
        """Requests finished so far."""
        return int(self._engine["num_finished"])

    def run(self) -> int:
        """Iterate until the policy is needed or all is done: ASK, DONE or STARVED."""
        while True:
            event = int(engine_loop.run(*self._state, self._token_times, self._samples))
            if event in (engine_loop.SAMPLES_FULL, engine_loop.DONE):
                self._take_samples()
            if event != engine_loop.SAMPLES_FULL:
                return event

    def _take_samples(self) -> None:
        taken = self._samples[: int(self._engine["num_samples"])]
        self._engine["num_samples"] = 0
        if self._record_timeline:
            self._timeline.append(taken.copy())
        if self._on_iteration is not None and taken.size:
            requests = self._requests
            self._on_iteration(
                Iteration(
                    time_s=float(taken[0]["time_s"]),
                    tokens=requests["chunk_tokens"].copy(),
                    blocks=requests["num_blocks"].copy(),
                    generated_tokens=requests["generated_tokens"].copy(),
                    preemptions=requests["preemptions"].copy(),
                )
            )
            requests["chunk_tokens"] = 0  # of those that compute nothing in the next one

    def take_finished(self) -> list[int]:
        """Numbers of the requests that finished since the last snapshot."""
        states = self._requests["state"][self._known]
        return self._known[states == engine_loop.FINISHED].tolist()

    def snapshot(self, oracle: bool) -> Snapshot:
        """The engine now, as a policy may see it."""
        profile, engine = self._profile, self._engine
        integers, reals = columns(self.num_active)
        engine_loop.gather(self._requests, self._engines, self._active, integers, reals)
        self._known = self._active[: self.num_active].copy()
        return snapshot_of(
            integers,
            reals,
            time_s=float(engine["now_s"]),
            # Plans leave free what letting their requests in has to leave free.
            capacity_tokens=max(1, profile.num_blocks - profile.watermark_blocks)
            * profile.block_tokens,
            block_tokens=profile.block_tokens,
            max_batch=self._places,
            token_budget=profile.token_budget,
            latency=profile.latency,
            requests_seen=int(self._accepted[int(engine["next_arrival"])]),
            preemptions_seen=int(engine["preemptions"]),
            oracle_output_tokens=self._requests["output_tokens"][self._known] if oracle else None,
        )

    def apply(self, decision: Decision, cost_s: float) -> None:
        """Carry out a decision that took ``cost_s`` seconds on the simulated clock."""
        action, order = _NO_ACTION, _NO_ORDER
        if decision.action is not None:
            action = _integers("action", decision.action, np.int8)
            order = _integers("order", decision.order, np.int64)
            if action.size != self.num_active:
                raise ValueError(f"a decision on {action.size} of {self.num_active} requests.")
            check_places(action, self._places)
        whole("replan_after", decision.replan_after, 1)
        countdown = -1 if decision.final else min(int(decision.replan_after), NEVER)
        self._engine["now_s"] += cost_s
        if not engine_loop.apply(*self._state, action, order, countdown):
            raise ValueError(
                "a decision needs known actions and an order that lists every request once."
            )

    def result(self, deciding: Deciding, wall_s: float) -> SimulationResult:
        """What became of the requests, after the run."""
        requests, engine, rejected = self._requests, self._engine, self._rejected
        last_token_s = np.where(rejected, np.nan, requests["last_token_s"])
        area, delay, window = (np.where(rejected, 0.0, score) for score in scores(requests))
        counts = asdict(deciding)
        del counts["charge_s"]
        return SimulationResult(
            **{name: getattr(self._workload, name) for name in REQUEST_FIELDS},
            rejected=rejected,
            first_token_s=np.where(rejected, np.nan, requests["first_token_s"]),
            completion_s=last_token_s,
            qoe_area=area,
            qoe_delay=delay,
            qoe_window=window,
            preemptions=requests["preemptions"].copy(),
            iterations=int(engine["iterations"]),
            makespan_s=float(
                np.max(requests["arrival_s"] + last_token_s, initial=0.0, where=~rejected)
            ),
            busy_s=float(engine["busy_s"]),
            tokens_by_last_arrival=int(engine["tokens_by_last_arrival"]),
            **counts,
            wall_s=wall_s,
            token_times_s=self._times(),
            timeline=self._rows(),
        )

    def _times(self) -> list[NDArray[np.float64]] | None:
        """Each request's token times, none for rejected ones; None unless recorded."""
        if not self._record_tokens:
            return None
        first, count = self._requests["token_offset"], self._requests["generated_tokens"]
        return [self._token_times[a : a + n] for a, n in zip(first, count, strict=True)]

    def _rows(self) -> NDArray[np.float64] | None:
        """The timeline as a table; None unless recorded."""
        if not self._record_timeline:
            return None
        return np.concatenate(self._timeline).view(np.float64).reshape(-1, len(TIMELINE_COLUMNS))
