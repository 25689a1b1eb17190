"""
vLLM's own scheduler in virtual time: a workload in, what became of each request out.

The scheduler is the installed vLLM's, unmodified: its queues, KV cache manager, prefix cache,
chunked prefill, watermark and preemption. There is no model and no worker: each request that
samples gets one token, and the clock jumps by what the engine's profile says that an iteration
takes.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from andes_opt.checks import whole
from andes_opt.engine import as_served
from andes_opt.simulator import TIMELINE_COLUMNS, Deciding, SimulationResult, seconds_per_solve
from engine_adapter.emulator.arrivals import Arrivals
from engine_adapter.emulator.charged_policy import Account, charged
from engine_adapter.emulator.checking_worker import CheckingWorker, reference
from engine_adapter.emulator.configuration import (
    RUNNERS,
    build_scheduler,
    find_class,
    options_of,
    stock_class,
)
from engine_adapter.emulator.prompts import Prompts, block_hasher, constant_reply
from engine_adapter.emulator.replies import Replies
from engine_adapter.emulator.timed_engine import TimedEngine
from engine_adapter.emulator.virtual_clock import VirtualClock
from engine_adapter.internals import Incompatible
from engine_adapter.settings import KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from andes_opt.engine import EngineProfile
    from andes_opt.workload import Requests
    from engine_adapter.emulator.configuration import Options


@dataclass(frozen=True, slots=True, eq=False)
class EmulationResult(SimulationResult):
    """
    What became of each request, as of a simulation, and what only vLLM's scheduler has.

    Parameters
    ----------
    rescues
        Times that vLLM's own order took over because a plan moved nothing.
    cached_tokens
        Tokens of admitted requests that the prefix cache had.
    scheduler
        The class of the scheduler, as in ``--scheduler-cls``.
    adapter
        The adapter's counters, as in its report; None without one.
    """

    rescues: int = 0
    cached_tokens: int = 0
    scheduler: str = ""
    adapter: Mapping[str, Any] | None = None


def emulate(
    requests: Requests,
    engine: EngineProfile,
    settings: Mapping[str, Any] | None = None,
    *,
    scheduler_cls: str | type | None = None,
    vllm: Mapping[str, Any] | None = None,
    solver_time: Literal["free", "measured"] | float = "free",
    background_time: Literal["free", "measured"] | float | None = None,
    concurrency: int | None = None,
    model_runner: str | None = None,
    check: bool = False,
    record_tokens: bool = False,
    record_timeline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> EmulationResult:
    """
    Serve all requests to their last token by vLLM's scheduler, in virtual time.

    Parameters
    ----------
    requests
        What arrives when.
    engine
        The engine's profile. vLLM computes again what it preempts, whatever the profile says.
    settings
        The adapter's options, as in :class:`engine_adapter.settings.Settings`; None without it.
        Classes that have no adapter ignore them.
    scheduler_cls
        A scheduler class, or its dotted name; None for ours with settings, for vLLM's own without.
    vllm
        vLLM's options by their flags' names; they win over the profile.
    solver_time
        What deciding costs on the virtual clock: ``"free"``, ``"measured"`` (the adapter's own
        time on this machine; such runs are not deterministic), or seconds per decision that
        carries a solver's plan.
    background_time
        How long a planner in the background takes for a plan, likewise; None for ``solver_time``.
    concurrency
        Requests unfinished at once, each next one arriving when one leaves; None for arrivals at
        their times.
    model_runner
        The model runner whose protocol the scheduler speaks, ``"v1"`` or ``"v2"``; None for
        the one that vLLM takes on a GPU.
    check
        Whether a worker computes on the KV cache, so that a wrong block table shows as a wrong
        token. Slow.
    record_tokens, record_timeline
        Whether to keep every token's time, and a row per iteration.
    progress
        Called now and then with the number of requests finished so far.

    Returns
    -------
    EmulationResult
        Bit-identical for the same input, unless a time is ``"measured"`` or a solver has a time
        limit.

    Raises
    ------
    ValueError
        If an option or a class is not understood, or a request's tokens are wrong.
    Starved
        If the scheduler leaves the engine empty for good while requests wait.
    """
    if model_runner not in (None, *RUNNERS):
        raise ValueError(f"model_runner = {model_runner!r} not understood: need v1 or v2.")
    if concurrency is not None:
        whole("concurrency", concurrency, 1)
    started_s = time.perf_counter()
    charge_s = seconds_per_solve(solver_time)
    background_s = charge_s if background_time is None else seconds_per_solve(background_time)
    clock = VirtualClock(charge_s, background_s)
    account = Account(clock, charge_s)
    options = options_of(engine, vllm or {})
    requests, rejected = _as_served(requests, engine, options)
    if options.blocks < 1:
        return _all_rejected(requests, time.perf_counter() - started_s)
    scheduler = _scheduler(options, settings, scheduler_cls, model_runner, clock, account)
    try:
        worker = CheckingWorker.of(scheduler) if check else None
        engines = [TimedEngine(scheduler, engine.latency, clock, worker, record_timeline)]
        replies = Replies(requests, record_tokens)
        run = _Run(requests, rejected, options, engines, replies, account, check, progress)
        with _frozen_heap():
            run.to_the_end(Arrivals(requests, concurrency))
        return _result(requests, engines[0], replies, account, time.perf_counter() - started_s)
    finally:
        scheduler.shutdown()


def _as_served(
    requests: Requests, engine: EngineProfile, options: Options
) -> tuple[Requests, NDArray[np.bool_]]:
    """The requests as vLLM serves them with its own options, and which of them it refuses."""
    if options.blocks < 1:
        return requests, np.ones(requests.num_requests, dtype=np.bool_)
    profile = replace(
        engine,
        capacity_tokens=options.blocks * options.block_tokens,
        block_tokens=options.block_tokens,
        max_context_tokens=options.max_context,
    )
    return as_served(requests, profile)


def _scheduler(
    options: Options,
    settings: Mapping[str, Any] | None,
    scheduler_cls: str | type | None,
    model_runner: str | None,
    clock: VirtualClock,
    account: Account,
) -> Any:
    """The scheduler, with the adapter on the virtual clock and its policy on the account."""
    from engine_adapter.scheduler import AndesScheduler, AndesSyncScheduler

    ours = AndesScheduler if options.asynchronous else AndesSyncScheduler
    chosen = find_class(scheduler_cls) if isinstance(scheduler_cls, str) else scheduler_cls
    if chosen is None:
        chosen = stock_class(options.asynchronous) if settings is None else ours
    elif chosen is AndesScheduler:
        chosen = ours
    additional = {}
    if hasattr(chosen, "andes_clock"):  # it has the adapter
        if settings is not None:
            additional[KEY] = charged(settings, account)
        name, module = chosen.__qualname__, chosen.__module__
        chosen = type(name, (chosen,), {"andes_clock": clock, "__module__": module})
    try:
        scheduler = build_scheduler(
            options, chosen, runner=model_runner or RUNNERS[-1], additional_config=additional
        )
    except Incompatible as error:
        raise ValueError(str(error)) from error
    account.open()
    return scheduler


class _Run:
    """The loop over engines and arrivals."""

    def __init__(
        self,
        requests: Requests,
        rejected: NDArray[np.bool_],
        options: Options,
        engines: Sequence[TimedEngine],
        replies: Replies,
        account: Account,
        check: bool,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._requests = requests
        self._engines = engines
        self._replies = replies
        self._account = account
        self._check = check
        self._progress = progress or (lambda finished: None)
        self._rejected = rejected
        self._prompts = Prompts(requests, reference if check else constant_reply)
        self._hasher = block_hasher(options.block_tokens) if options.prefix_caching else None

    def to_the_end(self, arrivals: Arrivals) -> None:
        """Let all requests arrive and leave."""
        engines = self._engines
        while True:
            engine = engines[0] if len(engines) == 1 else min(engines, key=_next_s)
            arrival_s, next_s = arrivals.next_s, engine.next_s
            if arrival_s <= next_s:
                if arrival_s == math.inf:
                    break
                self._arrive(arrivals, arrival_s)
                continue
            items = engine.step()
            if self._account.error is not None:
                raise self._account.error
            if items:
                now_s = engine.sent_s
                for number in self._deliver(items, now_s):
                    arrivals.left(number, now_s)
            self._give_up(engine, arrivals)
            if arrival_s == math.inf:
                engine.check_progress()
        for key in list(self._replies.active):  # that the scheduler has dropped without a word
            self._replies.end(key)
        self._progress(self._replies.finished)

    def _arrive(self, arrivals: Arrivals, now_s: float) -> None:
        number = arrivals.take()
        prompt = self._prompts.make(number)
        if self._rejected[number]:
            self._replies.reject(number, now_s)
            arrivals.left(number, now_s)
            return
        key = str(number)
        request = self._request(number, key, prompt, now_s)
        self._replies.begin(number, key, request, now_s)
        # One engine for now; a router would choose here.
        self._engines[0].add(request, now_s)

    def _request(self, number: int, key: str, prompt: list[int], now_s: float) -> Any:
        """A request as the engine core makes it, with its reader's target."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        requests = self._requests
        targets = {"ttft_s": float(requests.ttft_s[number]), "tds": float(requests.tds[number])}
        return Request(
            request_id=key,
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                max_tokens=int(requests.output_tokens[number]), ignore_eos=True, extra_args=targets
            ),
            pooling_params=None,
            arrival_time=now_s,
            block_hasher=self._hasher,
        )

    def _deliver(self, items: list[Any], now_s: float) -> list[int]:
        if self._check:
            for item in items:
                if item.finish_reason is not None:
                    _check_reply(self._replies.active[item.request_id].request)
        complete = self._replies.deliver(items, now_s)
        if complete:
            self._progress(self._replies.finished)
        return complete

    def _give_up(self, engine: TimedEngine, arrivals: Arrivals) -> None:
        """Close replies that a scheduler of somebody's own has ended before their last token."""
        for key in engine.take_left():
            if key in self._replies.active:
                arrivals.left(self._replies.end(key), engine.thread_s)


def _next_s(engine: TimedEngine) -> float:
    return engine.next_s


def _check_reply(request: Any) -> None:
    got = list(request.output_token_ids)
    wanted = reference(list(request.prompt_token_ids), len(got))
    if got != wanted:
        place = next(
            i for i, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1]
        )
        raise ValueError(
            f"token {place + 1} of request {request.request_id} is wrong: its KV cache was not "
            "where the scheduler said."
        )


class _frozen_heap:
    """Keeps Python's collector away from what will not become garbage, as vLLM's engine does."""

    def __enter__(self) -> None:
        gc.freeze()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()


def _result(
    requests: Requests,
    engine: TimedEngine,
    replies: Replies,
    account: Account,
    wall_s: float,
) -> EmulationResult:
    adapter = engine.scheduler.andes if hasattr(engine.scheduler, "andes") else None
    counters = None if adapter is None else adapter.summary()
    timeline = None
    if engine.timeline is not None:
        timeline = np.array(engine.timeline).reshape(-1, len(TIMELINE_COLUMNS))
    return _outcome(
        requests,
        replies,
        replace(account.deciding, charged_s=engine.charged_s),
        wall_s,
        iterations=engine.iterations,
        busy_s=engine.busy_s,
        timeline=timeline,
        rescues=0 if counters is None else int(counters["rescues"]),
        cached_tokens=engine.cached_tokens,
        scheduler=_name_of(type(engine.scheduler)),
        adapter=counters,
    )


def _all_rejected(requests: Requests, wall_s: float) -> EmulationResult:
    """The outcome of an engine without room for a block."""
    replies = Replies(requests)
    for number, arrival_s in enumerate(requests.arrival_s.tolist()):
        replies.reject(number, arrival_s)
    return _outcome(requests, replies, Deciding(0.0), wall_s, iterations=0, busy_s=0.0)


def _outcome(
    requests: Requests, replies: Replies, deciding: Deciding, wall_s: float, **engine: Any
) -> EmulationResult:
    ends_s = replies.arrival_s + replies.completion_s
    area, delay, window = replies.qoe.T
    return EmulationResult(
        arrival_s=replies.arrival_s,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=replies.tokens,
        ttft_s=requests.ttft_s,
        tds=requests.tds,
        rejected=replies.rejected,
        first_token_s=replies.first_token_s,
        completion_s=replies.completion_s,
        qoe_area=area,
        qoe_delay=delay,
        qoe_window=window,
        preemptions=replies.preemptions,
        makespan_s=float(np.max(ends_s, initial=0.0, where=np.isfinite(ends_s))),
        tokens_by_last_arrival=replies.tokens_by_last_arrival,
        decisions=deciding.decisions,
        solves=deciding.solves,
        decide_s=deciding.decide_s,
        solver_s=deciding.solver_s,
        charged_s=deciding.charged_s,
        wall_s=wall_s,
        token_times_s=replies.token_times_s,
        **engine,
    )


def _name_of(scheduler_class: type) -> str:
    return f"{scheduler_class.__module__}.{scheduler_class.__qualname__}"
