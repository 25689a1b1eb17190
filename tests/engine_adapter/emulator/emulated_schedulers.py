"""Schedulers and a policy of somebody's own, by name from a configuration: good and broken ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from andes_opt.plan import Plan, Status
from andes_opt.snapshot import Action, Decision
from engine_adapter.scheduler import AndesScheduler

if TYPE_CHECKING:
    from andes_opt.snapshot import Snapshot


class ShortestPromptFirst(AsyncScheduler):
    """Lets the request with the shortest prompt in first."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Order the queue, then schedule as vLLM does."""
        ordered = sorted(self.waiting, key=lambda request: request.num_prompt_tokens)
        self.waiting.clear()
        self.waiting.extend(ordered)
        return super().schedule(*args, **kwargs)


class Steered(AndesScheduler):
    """Ours under another name."""


class Thief(AsyncScheduler):
    """Gives the blocks of a running request to others."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule, then free what is in use."""
        output = super().schedule(*args, **kwargs)
        if len(self.running) > 2:
            self.kv_cache_manager.free(self.running[0])
        return output


class Dropper(AsyncScheduler):
    """Aborts each request that has ten tokens."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Abort, then schedule."""
        late = [key for key, r in self.requests.items() if r.num_output_tokens >= 10]
        self.finish_requests(late, RequestStatus.FINISHED_ABORTED)
        return super().schedule(*args, **kwargs)


class Nobody(AsyncScheduler):
    """Serves nobody."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule with nothing to see."""
        waiting, self.waiting = self.waiting, type(self.waiting)()
        output = super().schedule(*args, **kwargs)
        self.waiting = waiting
        return output


class Planner:
    """A policy that serves everybody, by a solver's plan, in every iteration."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """A plan for all."""
        n = snapshot.num_requests
        serve = np.ones(n, dtype=np.bool_)
        plan = Plan(serve, n, 0.0, 0.0, Status.OPTIMAL, build_s=0.0, solve_s=0.0, info={})
        action = np.full(n, Action.SERVE, dtype=np.int8)
        return Decision(action=action, order=np.arange(n), plan=plan, replan_after=1)

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
