"""
One engine iteration, seen from the adapter: observe, plan, hide, and put back.

:class:`StepController` is called before and after the engine's own scheduling. Before, it
may evict requests, order the queue, and hide requests that are held or have to wait. The engine
then schedules what it sees, by its own rules. Afterwards everything hidden is put back. So blocks,
prefix cache, chunked prefill, token budget and output stay the engine's business, and a
controller that does nothing leaves plain vLLM.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from andes_opt.snapshot import NEVER
from engine_adapter.clock import Stopwatch, SystemClock
from engine_adapter.observer import Observer
from engine_adapter.plan_in_force import PlanInForce, fit_to_now, plan_of
from engine_adapter.queues import Queues
from engine_adapter.report import Report

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot
    from engine_adapter.background import BackgroundPlanner, LatePlan
    from engine_adapter.clock import Clock
    from engine_adapter.guard import Events, Guard
    from engine_adapter.internals import EngineView
    from engine_adapter.latency_learning import LatencyLearner
    from engine_adapter.report_files import ReportFiles
    from engine_adapter.settings import Settings

#: The last plan is followed for so long when there is no new decision.
_STALE_S = 1.0
#: The counters are written so often while requests come.
_REPORT_EVERY_S = 1.0
#: Iterations for which the engine takes over when a plan moves nothing, at first and at most.
_RESCUE, _RESCUE_MAX = 8, 256
#: Iterations with work but without a token, beyond those that prompts need.
_PATIENCE = 64


class StepController:
    """
    Applies a policy to an engine, iteration by iteration.

    Parameters
    ----------
    engine
        The engine.
    settings
        The adapter's options.
    guard
        The policy.
    learner
        The latency model.
    events
        Where failures are counted.
    background
        A slow policy in its own process, or None.
    clock
        All that the adapter knows of time; None for the machine's.
    files
        Where the counters go, or None.
    """

    def __init__(
        self,
        engine: EngineView,
        settings: Settings,
        guard: Guard,
        learner: LatencyLearner,
        events: Events,
        background: BackgroundPlanner | None = None,
        clock: Clock | None = None,
        *,
        files: ReportFiles | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._guard = guard
        self._learner = learner
        self._background = background
        self._late_s = 0.0 if settings.background is None else settings.background.max_age_s
        clock = clock or SystemClock()
        self._clock: Clock = clock
        self.events = events
        self.report = Report()
        self._watch = Stopwatch(clock, self.report.spend)
        self._observer = Observer(engine, settings, learner, self.report, events, clock)
        self._queues = Queues(engine, self._observer, self.report, events, clock)

        # The plan being followed (None: the engine's own order), and when to ask again.
        self._plan: PlanInForce | None = None
        self._changed = True  # something arrived, left or was preempted since the last plan
        self._iterations_since = NEVER
        self._replan_after = 1
        self._next_plan_s = -float("inf")

        # Against plans that move nothing.
        self._empty = 0
        self._without_token = 0
        self._rescue_left = 0
        self._rescue_length = _RESCUE
        self._last_rescue = 0  # iteration

        self._failed = False
        self._begun_s = 0.0  # on the stopwatch, when this iteration began
        self._files = files if files is not None and files.wanted else None
        self._report_s = -float("inf")
        self._shown_idle = True  # what was written last says that no request is here
        self._write_report()

    def before(self) -> None:
        """Prepare the engine's queues; :meth:`restore` has to follow whatever happens."""
        watch = self._watch
        watch.start()
        self._begun_s = watch.total_s
        now_s = self._clock.monotonic_s()
        self._observe(now_s)
        watch.lap("observe")

        self._iterations_since += 1
        if self._rescue_left > 0:
            self._rescue_left -= 1
            self._plan = None
        elif self._engine.paused or len(self._observer.tracker) == 0:
            self._plan = None
            self._changed = True
        else:
            self._plan_if_due(now_s)
        self.report.passed_through += self._plan is None
        self._queues.hide(self._plan)
        watch.lap("apply")

    def restore(self) -> None:
        """Put back everything that is hidden; harmless if nothing is."""
        self._watch.start()
        self._restored = self._queues.restore()
        self._watch.lap("apply")

    def after(self, output: Any) -> None:
        """Learn from what the engine scheduled."""
        watch = self._watch
        watch.start()
        engine, visible = self._engine, self._queues.visible
        scheduled = engine.scheduled_tokens(output)
        running = list(engine.running)

        # The engine takes the requests that it preempts out of this list and appends those that it
        # admits. What was hidden came back behind them.
        lost = self._observer.note_lost(visible) if running[: len(visible)] != visible else 0
        self.report.engine_preemptions += lost
        self._changed |= lost > 0
        admitted = running[len(visible) - lost : len(running) - self._restored]
        self._observer.iteration_scheduled(running, admitted, scheduled)
        self._check_progress(bool(scheduled))

        watch.lap("observe")
        self.report.add_iteration(watch.total_s - self._begun_s)
        if self._report_is_due():
            self._write_report()
            watch.lap("observe")
            self.report.last_iteration(watch.total_s - self._begun_s)

    def failed(self, error: Exception) -> None:
        """Count an error of the adapter itself, and let the engine go on alone for a while."""
        self.events.record("adapter failed", f"{type(error).__name__}: {error}")
        self._plan = None
        self._rescue_left = _RESCUE_MAX
        self._failed = True

    def close(self) -> None:
        """End the background process, and write the last report and the last iterations."""
        self._observer.close()
        if self._background is not None:
            self._background.close()
        if self._files is not None:
            try:
                self._files.close(self.summary)
            except OSError as error:
                self.events.record("report not written", str(error))

    def summary(self) -> dict[str, Any]:
        """Returns counters, events and the latency model as learnt, ready for JSON."""
        tracker = self._observer.tracker
        return {
            **self.report.summary(),
            "events": dict(self.events.counts),
            "requests": tracker.seen,
            "unfinished": len(tracker),
            "preemptions": tracker.preemptions_seen,
            "latency": {**asdict(self._learner.model), "samples": self._learner.samples},
        }

    def _observe(self, now_s: float) -> None:
        tokens, left, arrived = self._observer.iteration_starts(now_s)
        if self._failed:
            left += self._observer.resync()
            self._failed = False
        self._without_token = 0 if tokens else self._without_token + 1
        for number in left:
            self._guard.finished(number)
            if self._background is not None:
                self._background.finished(number)
        self._changed |= arrived or bool(left)

    def _plan_if_due(self, now_s: float) -> None:
        plan, background = self._plan, self._background
        short = self._observer.short_of_blocks(plan.hold if plan is not None else set())
        if background is not None:
            if self._plan_with(background, now_s):
                return
            if plan is not None and plan.late:
                if short or now_s - plan.made_s > self._late_s:
                    self._plan = None  # too old: the next plan starts afresh
                elif not (self._observer.unblocked or self._queues.newcomers_wait(plan)):
                    return
                # Newcomers would wait for the background's next plan: the fast policy takes over.
                self._changed = True

        if self._replan_after >= NEVER:
            return
        asked = self._changed or short or self._iterations_since >= self._replan_after
        pace = now_s >= self._next_plan_s
        if not self._guard.available:
            self._keep_last_good(now_s, short)
        elif asked and (pace or self._queues.idle(self._plan)):
            self._replan(now_s)

    def _replan(self, now_s: float) -> None:
        watch = self._watch
        watch.lap("apply")
        begun_s = watch.total_s
        snapshot, keys = self._snapshot(now_s)
        decision = self._guard.decide(snapshot)
        watch.timed("decide", self._guard.decide_s)
        self._iterations_since = 0
        self._changed = self._observer.unblocked = False
        if decision is None:
            self._replan_after = 1
            self._keep_last_good(now_s, short=False)
        else:
            self._follow(decision, keys, snapshot.requests_seen, now_s)
        self._put_off_next(now_s, begun_s)

    def _plan_with(self, background: BackgroundPlanner, now_s: float) -> bool:
        """Apply the background's plan, or show it the engine; returns whether it applied one."""
        if now_s < self._next_plan_s and not self._queues.idle(self._plan):
            return False
        self._watch.lap("apply")
        begun_s = self._watch.total_s
        late = background.take()
        followed = late is not None and self._follow_late(late, now_s)
        if not followed and background.wants_snapshot and self._engine.waiting:
            background.offer(*self._snapshot(now_s))
        elif late is None:
            return False
        self._put_off_next(now_s, begun_s)
        return followed

    def _put_off_next(self, now_s: float, begun_s: float) -> None:
        """Keep planning, begun at this reading of the stopwatch, within its share."""
        self._watch.lap("apply")
        cost_s = self._watch.total_s - begun_s
        self.report.planning_s += cost_s
        limit = self._settings.planning_share_limit
        if limit < 1.0:
            # What plans that could not be put off took beyond the share is made up for.
            behind_s = min(max(0.0, self._next_plan_s - now_s), _STALE_S)
            self._next_plan_s = now_s + behind_s + cost_s / limit

    def _follow(self, decision: Decision, keys: list[str], newest: int, now_s: float) -> None:
        self._replan_after = NEVER if decision.final else min(decision.replan_after, NEVER - 1)
        self.report.plans += 1
        if decision.action is None:
            self._plan = None
        else:
            self._plan = plan_of(decision, keys, newest, now_s)
            self._queues.arrange(self._plan)

    def _follow_late(self, late: LatePlan, now_s: float) -> bool:
        """Apply a plan from the background to the requests that are still here."""
        if late.decision.action is None:
            return False
        age_s = now_s - late.snapshot_s
        tracker = self._observer.tracker
        self._observer.refresh(self._queues.held)
        plan = plan_of(late.decision, late.keys, late.newest, late.snapshot_s, late=True)
        for group in (plan.serve, plan.hold, plan.wait):
            group.intersection_update([key for key in group if key in tracker])
        engine = self._engine
        resident = {r.request_id for r in engine.running if engine.steerable(r)}
        if age_s > self._late_s or not fit_to_now(
            plan,
            resident,
            tracker.need_blocks,
            self._observer.capacity_blocks(),
            self._observer.headroom_blocks,
            places=self._observer.places(),
        ):
            self.report.late_rejected += 1
            return False
        self.report.late_plans += 1
        self.report.late_age_s_sum += age_s
        self.report.late_age_s_max = max(self.report.late_age_s_max, age_s)
        self._plan = plan
        self._queues.arrange(plan)
        return True

    def _keep_last_good(self, now_s: float, short: bool) -> None:
        """Without a decision: the last plan while it is fresh, then the engine's own order."""
        if self._plan is not None and (short or now_s - self._plan.made_s > _STALE_S):
            self._plan = None

    def _snapshot(self, now_s: float) -> tuple[Snapshot, list[str]]:
        snapshot = self._observer.snapshot(now_s, self._queues.held)
        self._watch.lap("snapshot")
        return snapshot

    def _check_progress(self, scheduled: bool) -> None:
        """Let the engine take over when a plan moves nothing."""
        if self._plan is None or len(self._observer.tracker) == 0:
            self._empty = self._without_token = 0
            return
        self._empty = 0 if scheduled else self._empty + 1
        prompts = -(-self._observer.longest_prompt // self._engine.token_budget)
        if self._empty < self._engine.depth and self._without_token < _PATIENCE + 4 * prompts:
            return
        iteration = self._observer.iteration
        if iteration - self._last_rescue > 1000:
            self._rescue_length = _RESCUE
        self._rescue_left, self._last_rescue = self._rescue_length, iteration
        self._rescue_length = min(2 * self._rescue_length, _RESCUE_MAX)
        self._empty = self._without_token = 0
        self.report.rescues += 1
        self.events.record("plan moved nothing", "the engine's own order takes over for a while")

    def _report_is_due(self) -> bool:
        """Returns whether a second is over, or the last request has left: no call may follow."""
        if self._files is None:
            return False
        idle = len(self._observer.tracker) == 0
        if idle and not self._shown_idle:
            return True
        self._shown_idle &= idle
        return self._clock.monotonic_s() >= self._report_s + _REPORT_EVERY_S

    def _write_report(self) -> None:
        if self._files is None:
            return
        self._report_s = self._clock.monotonic_s()
        self._shown_idle = len(self._observer.tracker) == 0
        try:
            self._files.write(self.summary())
        except OSError as error:
            self.events.record("report not written", str(error))
