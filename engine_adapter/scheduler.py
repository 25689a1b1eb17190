"""
The scheduler classes for vLLM's ``--scheduler-cls``.

``engine_adapter.scheduler.AndesScheduler`` is for every engine: it becomes an
:class:`AndesSyncScheduler` where vLLM itself would use its synchronous scheduler.

Both only wrap ``schedule()``. Everything else is vLLM's own.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from andes_opt.latency import LatencyModel
from andes_opt.qoe import QoETarget
from andes_opt.snapshot import State
from engine_adapter.background import BackgroundPlanner
from engine_adapter.clock import SystemClock
from engine_adapter.controller import StepController
from engine_adapter.guard import LOGGER, Events, Guard
from engine_adapter.internals import (
    EngineView,
    Incompatible,
    check_installed,
    engine_number,
    instance_of,
    shows_metrics,
)
from engine_adapter.latency_learning import LatencyLearner
from engine_adapter.report_files import ReportFiles, numbered
from engine_adapter.settings import describe, instantiate, read_settings
from engine_adapter.tracker import ReaderTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vllm.v1.core.sched.output import SchedulerOutput

    from andes_opt.snapshot import Snapshot
    from engine_adapter.clock import Clock
    from engine_adapter.settings import Settings

#: Errors of the adapter itself after which it leaves the engine alone for good.
_MAX_ERRORS = 10


class _Steered:
    """What both schedulers share: ``schedule()`` under a controller, which ends with them."""

    #: The clock; None for the machine's. A subclass for an engine in virtual time has its own.
    andes_clock: Clock | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.andes = make_controller(self, self.andes_clock)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule one iteration: vLLM's own, after the policy has arranged the queues."""
        schedule: Callable[..., SchedulerOutput] = super().schedule  # type: ignore[misc]
        return steer(self.andes, lambda: schedule(*args, **kwargs))

    def shutdown(self) -> None:
        """End the background planner too."""
        try:
            if self.andes is not None:
                self.andes.close()
        finally:
            super().shutdown()  # type: ignore[misc]


class AndesSyncScheduler(_Steered, Scheduler):
    """vLLM's synchronous scheduler, with a QoE-aware policy deciding who gets the KV cache."""


class AndesScheduler(_Steered, AsyncScheduler):
    """
    vLLM's asynchronous scheduler, with a QoE-aware policy deciding who gets the KV cache.

    Where the engine runs synchronously (a pipeline without asynchronous scheduling, some kinds
    of speculative decoding, CPUs), an :class:`AndesSyncScheduler` is made in its place, as vLLM
    itself would choose: the asynchronous one would schedule tokens before they are known.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        if cls is AndesScheduler and not config.scheduler_config.async_scheduling:
            return AndesSyncScheduler(*args, **kwargs)
        return super().__new__(cls)


def steer(
    controller: StepController | None, schedule: Callable[[], SchedulerOutput]
) -> SchedulerOutput:
    """
    Schedule one iteration under a controller, whose errors cannot reach the engine.

    Parameters
    ----------
    controller
        None for plain vLLM.
    schedule
        The engine's own scheduling.
    """
    if controller is None or controller.events.counts["adapter failed"] >= _MAX_ERRORS:
        return schedule()
    prepared = True
    try:
        controller.before()
    except Exception as error:
        prepared = False
        controller.restore()
        controller.failed(error)
        LOGGER.debug("adapter failed", exc_info=error)
    try:
        output = schedule()
    finally:
        controller.restore()
    if prepared:
        try:
            controller.after(output)
        except Exception as error:
            controller.failed(error)
            LOGGER.debug("adapter failed", exc_info=error)
    return output


def make_controller(scheduler: Any, clock: Clock | None = None) -> StepController | None:
    """
    Returns the controller that a scheduler's configuration asks for.

    Parameters
    ----------
    scheduler
        A vLLM scheduler, constructed.
    clock
        All that the adapter knows of time; None for the machine's. An engine in virtual time
        has a class of its own, whose :attr:`AndesScheduler.andes_clock` is its clock, or makes
        the controller itself.

    Returns
    -------
    StepController | None
        None if this vLLM lacks something and the settings say to fall back.

    Raises
    ------
    Incompatible
        If this vLLM lacks something and the settings say to refuse.
    ValueError
        If the settings are wrong.
    """
    clock = clock or SystemClock()
    settings = read_settings(scheduler.vllm_config.additional_config)
    try:
        remark = check_installed()
        engine = EngineView(scheduler)
    except (Incompatible, AttributeError) as error:
        if settings.on_mismatch == "refuse":
            raise
        LOGGER.error("Falling back to vLLM's own scheduling: %s", error)
        return None
    if remark is not None:
        LOGGER.warning(remark)

    events = Events()
    policy = instantiate(settings.policy)
    with said_if_slow():
        practice = _practice(settings, engine)
    background = None
    if settings.background is not None:
        background = BackgroundPlanner(settings.background, events, clock, practice)
    with said_if_slow():
        _compile(settings, practice, events)
    number = engine_number(scheduler.vllm_config)
    instance = instance_of(scheduler.vllm_config) if shows_metrics(scheduler) else ""
    if settings.iterations_path is not None:
        settings = replace(settings, iterations_path=numbered(settings.iterations_path, number))
    LOGGER.info("Scheduling by %s", describe(settings.policy))
    if settings.background is not None:
        LOGGER.info("Planning in the background by %s", describe(settings.background.policy))
    return StepController(
        engine,
        settings,
        Guard(policy, events, clock=clock),
        LatencyLearner(settings.latency, learn=settings.learn_latency),
        events,
        background,
        clock,
        files=ReportFiles(settings.report_path, number, instance),
    )


@contextmanager
def said_if_slow(after_s: float = 2.0) -> Iterator[None]:
    """Say that code is being compiled, if the block takes longer than ``after_s`` seconds."""
    timer = threading.Timer(
        after_s,
        LOGGER.info,
        ("Compiling the policy, first start only: a minute or two. Later starts load the code.",),
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _compile(settings: Settings, practice: Sequence[Snapshot], events: Events) -> None:
    """Compile before the first request comes, without touching the real policy's state."""
    practising = Guard(instantiate(settings.policy), events, slow_s=float("inf"))
    for snapshot in practice:
        practising.decide(snapshot)


def _practice(settings: Settings, engine: EngineView) -> list[Snapshot]:
    """
    Returns snapshots of a made-up engine: one with too little room, one with plenty.

    Making them compiles what snapshots need; deciding about them imports and compiles what a policy
    needs.
    """
    tracker = ReaderTracker(engine.block_tokens)
    for number in range(4):
        tracker.add(
            str(number),
            -1.0,
            4 * engine.block_tokens,
            8 * engine.block_tokens,
            QoETarget(ttft_s=0.5, tds=5.0),
        )
    tracker.delivered(["0"], [1], 0.0)
    tracker.resident(["0"], [4 * engine.block_tokens], [4 * engine.block_tokens + 1], State.RUNNING)
    tracker.qoe_area("0")
    learner = LatencyLearner(LatencyModel(0.03, 1e-4, 4e-7, 1e-4))
    learner.observe(0.03, 1, 64, 0)
    return [
        tracker.snapshot(
            0.0,
            capacity_tokens=capacity * engine.block_tokens,
            max_batch=engine.max_batch,
            token_budget=engine.token_budget,
            latency=learner.model,
            max_candidates=settings.max_candidates,
        )[0]
        for capacity in (10, 1000)
    ]
