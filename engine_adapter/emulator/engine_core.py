"""vLLM's engine-core loop around a scheduler, with a worker that is no model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol


class Worker(Protocol):
    """What runs an iteration in place of vLLM's model runner."""

    def execute(self, output: Any) -> Any:
        """
        Run one iteration.

        Parameters
        ----------
        output
            A ``SchedulerOutput``.

        Returns
        -------
        ModelRunnerOutput
            A token for each request that has no prompt left to compute.
        """
        ...


@dataclass
class EngineCore:
    """
    A scheduler, a worker, and the iterations between them.

    Parameters
    ----------
    scheduler
        A vLLM scheduler, constructed.
    worker
        Runs its iterations.
    depth
        Iterations in flight at once: 2 with asynchronous scheduling, else 1.
    queue
        Iterations in flight, the oldest first: the scheduler's output and the worker's.
    """

    scheduler: Any
    worker: Worker
    depth: int
    queue: deque[tuple[Any, Any]] = field(default_factory=deque)

    def dispatch(self) -> Any:
        """Schedule an iteration, give it to the worker, and return the scheduler's output."""
        output = self.scheduler.schedule()
        self.scheduled(output)
        self.queue.append((output, self.worker.execute(output)))
        return output

    def scheduled(self, output: Any) -> None:
        """Look at an output of the scheduler's before the worker gets it."""

    def goes_on(self, output: Any) -> bool:
        """
        Return whether the next iteration is scheduled before any output is processed.

        As in vLLM's ``EngineCore.step_with_batch_queue``: while there is a place in the queue, and
        something to schedule.
        """
        return len(self.queue) < self.depth and bool(
            output.total_num_scheduled_tokens or self.scheduler.has_requests()
        )

    def collect(self) -> list[Any]:
        """Process the oldest iteration's output, and return what goes out to clients."""
        output, result = self.queue.popleft()
        parts = self.scheduler.update_from_output(output, result)
        return [item for part in parts.values() for item in part.outputs]


def depth_of(scheduler: Any) -> int:
    """Return how many iterations vLLM has in flight with a scheduler on one GPU."""
    return 2 if scheduler.scheduler_config.async_scheduling else 1
