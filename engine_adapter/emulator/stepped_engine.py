"""An engine without time: stepped by tests, which look at every token and at the queues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine_adapter.emulator.checking_worker import CheckingWorker
from engine_adapter.emulator.engine_core import EngineCore, depth_of
from engine_adapter.emulator.prompts import block_hasher

if TYPE_CHECKING:
    from collections.abc import Callable


def make_request(
    scheduler: Any, key: str, prompt: list[int], max_tokens: int, **extra_args: Any
) -> Any:
    """A request as the engine core makes it."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    caching = scheduler.cache_config.enable_prefix_caching
    return Request(
        request_id=key,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, extra_args=extra_args or None
        ),
        pooling_params=None,
        block_hasher=block_hasher(scheduler.block_size) if caching else None,
    )


@dataclass
class Engine(EngineCore):
    """
    An engine core that is stepped, and checked at each step.

    Attributes
    ----------
    replies
        Request to the tokens that it has got.
    finished
        Requests that are complete.
    steps
        Iterations scheduled.
    on_step, on_output
        Called after each step, and with each output of the scheduler.
    """

    replies: dict[str, list[int]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    steps: int = 0
    on_step: Callable[[Engine], None] | None = None
    on_output: Callable[[Any], None] | None = None

    @classmethod
    def around(cls, scheduler: Any) -> Engine:
        """An engine for a scheduler, with a checking worker."""
        return cls(scheduler, CheckingWorker.of(scheduler), depth_of(scheduler))

    def add(self, key: str, prompt: list[int], max_tokens: int, **extra_args: Any) -> None:
        """Let a request arrive."""
        self.replies[key] = []
        request = make_request(self.scheduler, key, prompt, max_tokens, **extra_args)
        self.scheduler.add_request(request)

    def abort(self, key: str | None) -> None:
        """Let a client hang up; None for all of them."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(key, RequestStatus.FINISHED_ABORTED)

    def scheduled(self, output: Any) -> None:
        """Check an iteration."""
        self.steps += 1
        self._check(output)
        if self.on_output is not None:
            self.on_output(output)

    def step(self) -> None:
        """One turn of the loop: schedule, and process the oldest output if the queue is full."""
        if self.scheduler.has_requests() and self.goes_on(self.dispatch()):
            return
        if not self.queue:
            return
        for item in self.collect():
            self.replies[item.request_id] += item.new_token_ids
            if item.finish_reason is not None:
                self.finished.add(item.request_id)
        if self.on_step is not None:
            self.on_step(self)

    def drain(self, most_steps: int) -> None:
        """Step until nothing is left; AssertionError if that takes too long."""
        for _ in range(most_steps):
            if not self.scheduler.has_requests() and not self.queue:
                return
            self.step()
        raise AssertionError(f"{len(self.scheduler.requests)} requests stuck: {self.state()}")

    def state(self) -> str:
        """A line about the queues, for failures."""
        scheduler = self.scheduler
        return (
            f"running {[r.request_id for r in scheduler.running]}, "
            f"waiting {[r.request_id for r in scheduler.waiting]}, "
            f"free {scheduler.kv_cache_manager.block_pool.get_num_free_blocks()}"
        )

    def _check(self, output: Any) -> None:
        scheduler = self.scheduler
        assert output.total_num_scheduled_tokens <= scheduler.max_num_scheduled_tokens
        assert len(scheduler.running) <= scheduler.max_num_running_reqs
        queued = [r.request_id for r in (*scheduler.running, *scheduler.waiting)]
        assert len(queued) == len(set(queued)), "a request is queued twice"
        # By vLLM's version, those that wait for something else have a queue of their own.
        blocked = [
            getattr(scheduler, name, ()) for name in ("kv_holding_waiting", "skipped_waiting")
        ]
        everyone = set(queued) | {r.request_id for queue in blocked for r in queue}
        unfinished = {k for k, r in scheduler.requests.items() if not r.is_finished()}
        assert everyone == unfinished, f"lost: {unfinished - everyone}"
