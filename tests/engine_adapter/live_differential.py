"""
One workload through vLLM's own scheduler in virtual time, and through the simulator.

vLLM's scheduler is stepped without a model (:mod:`live_stepping`). After each iteration the clock
moves on by what the profile's latency model says, as it does in the simulator. Replies end by a
stop token, so that, as in the simulator, nobody knows their lengths before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from live_clock import StatedClock
from live_stepping import make_scheduler

from andes_opt.engine import EngineProfile, as_served
from andes_opt.latency import LatencyModel
from andes_opt.simulator import Iteration, simulate
from andes_opt.workload import Requests

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Decision, Policy, Snapshot

_TOKENS, _STOP = 250, 250  # what prompts and replies are made of, and what ends a reply
#: Iterations in a row that compute nothing, after which a run is given up.
_MOST_EMPTY = 50


def scenario(seed: int) -> tuple[Requests, EngineProfile]:
    """A small random workload on a small random engine; most are short of something."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 15))
    block_tokens = int(rng.choice([8, 16]))
    max_batch = int(rng.choice([1, 2, 3, 4, 8, 16]))
    capacity = int(rng.choice([48, 80, 128, 200, 400]))
    profile = EngineProfile(
        name=f"seed {seed}",
        latency=LatencyModel(
            base_s=float(rng.choice([0.02, 0.1, 0.3])),
            per_request_s=float(rng.choice([0.0, 0.001, 0.02])),
            per_context_token_s=float(rng.choice([0.0, 1e-5])),
            per_prefill_token_s=float(rng.choice([1e-4, 5e-3])),
            mixed_base_s=float(rng.choice([0.0, -0.01, 0.05])),
            mixed_per_request_s=float(rng.choice([0.0, 0.01])),
        ),
        capacity_tokens=capacity,
        block_tokens=block_tokens,
        max_batch=max_batch,
        token_budget=max(max_batch, int(rng.choice([4, 9, 16, 40, 256]))),
        max_context_tokens=int(rng.choice([capacity, 64, 96])),
        preemption="recompute",
        reserve_full_context=bool(rng.random() < 0.8),
        watermark=float(rng.choice([0.0, 0.0, 0.0, 0.1, 0.3])),
    )
    gap_s = rng.choice([0.0, 0.1, 0.5, 2.0])
    gaps_s = rng.integers(0, 3, n) * gap_s
    return (
        Requests(
            arrival_s=np.cumsum(gaps_s) - gaps_s[0],
            prompt_tokens=rng.integers(1, int(rng.choice([8, 30, 70])) + 1, n),
            output_tokens=rng.integers(1, int(rng.choice([4, 20, 60])) + 1, n),
            ttft_s=rng.choice([0.2, 1.0, 3.0], n),
            tds=rng.choice([1.0, 4.0, 12.0], n),
        ),
        profile,
    )


@dataclass
class Run:
    """What an engine did: its iterations, and what its policy saw and said."""

    iterations: list[Iteration] = field(default_factory=list)
    decisions: list[tuple[Snapshot, Decision]] = field(default_factory=list)
    token_times_s: list[list[float]] = field(default_factory=list)
    idle_steps: int = 0
    counters: dict[str, Any] = field(default_factory=dict)
    #: Of each return of a preempted request: tokens whose KV it had, and those found in the cache.
    returns: list[tuple[int, int]] = field(default_factory=list)

    @property
    def preemptions(self) -> NDArray[np.int64]:
        """How often each request was preempted, (n,)."""
        return self.iterations[-1].preemptions if self.iterations else np.zeros(0, dtype=np.int64)


def simulated(requests: Requests, profile: EngineProfile, policy: Policy) -> Run:
    """The simulator's run."""
    run = Run()
    result = simulate(
        requests,
        profile,
        policy,
        record_tokens=True,
        on_iteration=run.iterations.append,
        capture=lambda snapshot, decision: run.decisions.append((snapshot, decision)),
    )
    run.token_times_s = [times.tolist() for times in result.token_times_s or []]
    return run


class _Recording:
    """A policy that notes what it saw and said, with the simulator's numbers of requests."""

    def __init__(self, policy: Any, run: Run, sent: list[int]) -> None:
        self._policy, self._run, self._sent = policy, run, np.array(sent)

    def decide(self, snapshot: Snapshot) -> Decision:
        decision: Decision = self._policy.decide(snapshot)
        # The adapter counts the requests that reach it, from 1.
        shown = replace(snapshot, request_id=self._sent[snapshot.request_id - 1])
        self._run.decisions.append((shown, decision))
        return decision

    def finished(self, request_id: int) -> None:
        self._policy.finished(request_id)


def _block_hasher(block_tokens: int) -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(block_tokens, sha256)


class VirtualEngine:
    """
    vLLM's engine-core loop in virtual time, without a model.

    Parameters
    ----------
    model
        Folder of a tiny model's configuration.
    requests, profile
        As for the simulator; ``rejected`` requests are not sent.
    policy
        What the adapter is to instantiate; None for vLLM's own scheduler.
    prefix_caching
        Whether vLLM looks for the KV of a request that comes back in its prefix cache. The
        simulator has a share for that (``recompute_hit_share``), so they agree without it only.
    """

    def __init__(
        self,
        model: str,
        requests: Requests,
        profile: EngineProfile,
        policy: dict[str, Any] | None = None,
        *,
        prefix_caching: bool = False,
    ) -> None:
        self.requests, refused = as_served(requests, profile)
        self._coming = np.flatnonzero(~refused).tolist()
        self.profile = profile
        # As asked for: it is the engine that ends what gets too long.
        self._output_tokens = requests.output_tokens
        self.clock = StatedClock()
        self.run_ = Run(token_times_s=[[] for _ in range(requests.num_requests)])
        self.scheduler = self._make_scheduler(model, policy, prefix_caching)
        self._requests: dict[int, Any] = {}
        self._computed: dict[int, int] = {}  # tokens whose KV each request has, or had last
        self._preemptions = np.zeros(requests.num_requests, dtype=np.int64)
        self._hasher = _block_hasher(profile.block_tokens) if prefix_caching else None

    def _make_scheduler(
        self, model: str, policy: dict[str, Any] | None, prefix_caching: bool
    ) -> Any:
        from vllm.v1.core.sched.scheduler import Scheduler

        from engine_adapter.scheduler import AndesSyncScheduler

        profile = self.profile
        options: dict[str, Any] = {
            "blocks": profile.num_blocks,
            "block_tokens": profile.block_tokens,
            "max_batch": profile.max_batch,
            "token_budget": profile.token_budget,
            "max_context": profile.max_context_tokens,
            "prefix_caching": prefix_caching,
            "reserve_full_context": profile.reserve_full_context,
            "watermark": profile.watermark,
        }
        if policy is None:
            return make_scheduler(model, Scheduler, **options)
        settings = {
            "policy": policy,
            "planning_share_limit": 1.0,
            "learn_latency": False,
            "headroom_blocks": 0,
            "latency": asdict(profile.latency),
        }
        options["additional_config"] = {"andes_opt": settings}
        timed = type("Timed", (AndesSyncScheduler,), {"andes_clock": self.clock})
        scheduler = make_scheduler(model, timed, **options)
        guard = scheduler.andes._guard  # noqa: SLF001
        guard._policy = _Recording(guard._policy, self.run_, list(self._coming))  # noqa: SLF001
        return scheduler

    def run(self) -> Run:
        """Serve all requests that fit to their last token."""
        arrivals = self.requests.arrival_s.tolist()
        coming, empty = self._coming, 0
        while coming or self._requests:
            if not self._requests:
                self.clock.now_s = max(self.clock.now_s, arrivals[coming[0]])
            while coming and arrivals[coming[0]] <= self.clock.now_s:
                self._add(coming.pop(0))
            empty = 0 if self._step() else empty + 1
            assert empty < _MOST_EMPTY, "stuck"
        if hasattr(self.scheduler, "andes"):
            self.run_.counters = self.scheduler.andes.summary()
        self.scheduler.shutdown()
        return self.run_

    def _add(self, i: int) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        requests = self.requests
        target = {"ttft_s": float(requests.ttft_s[i]), "tds": float(requests.tds[i])}
        request = Request(
            request_id=str(i),
            prompt_token_ids=self._prompt(i),
            sampling_params=SamplingParams(
                # What vLLM takes when a client does not say.
                max_tokens=self.profile.max_context_tokens - int(requests.prompt_tokens[i]),
                ignore_eos=True,
                stop_token_ids=[_STOP],
                extra_args=target,
            ),
            pooling_params=None,
            arrival_time=float(requests.arrival_s[i]),
            block_hasher=self._hasher,
        )
        self._requests[i] = request
        self.scheduler.add_request(request)

    def _prompt(self, i: int) -> list[int]:
        """A prompt of its own, lest a prefix cache has it from somebody else."""
        rng = np.random.default_rng(i)
        tokens: list[int] = rng.integers(0, _TOKENS, int(self.requests.prompt_tokens[i])).tolist()
        return tokens

    def _step(self) -> bool:
        """One iteration; False if it computed nothing."""
        output = self.scheduler.schedule()
        scheduled = {int(key): count for key, count in output.num_scheduled_tokens.items()}
        for key in output.scheduled_cached_reqs.resumed_req_ids:
            i = int(key)
            found = self._requests[i].num_computed_tokens - scheduled[i]
            self.run_.returns.append((self._computed[i], found))
        self.clock.now_s += self._duration_s(scheduled)
        self.scheduler.update_from_output(output, self._sampled(scheduled))
        for i in scheduled:
            times = self.run_.token_times_s[i]
            if self._requests[i].num_output_tokens > len(times):
                times.append(self.clock.now_s - float(self.requests.arrival_s[i]))
        self._note(scheduled)
        return bool(scheduled)

    def _duration_s(self, scheduled: dict[int, int]) -> float:
        batch, context, prefill = 0, 0, 0
        for i, tokens in scheduled.items():
            request = self._requests[i]
            # The scheduler has counted this iteration's tokens as computed already.
            if tokens == 1 and request.num_output_tokens and self._complete(request):
                batch += 1
                context += request.num_tokens
            else:
                prefill += tokens
        return self.profile.latency.iteration_s(batch, context, prefill)

    @staticmethod
    def _complete(request: Any) -> bool:
        return bool(request.num_computed_tokens == request.num_tokens)

    def _sampled(self, scheduled: dict[int, int]) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        tokens: list[list[int]] = []
        for i in scheduled:
            request = self._requests[i]
            if not self._complete(request):
                tokens.append([])
            elif request.num_output_tokens + 1 == self._output_tokens[i]:
                tokens.append([_STOP])
            else:
                tokens.append([request.num_output_tokens % _TOKENS])
        return ModelRunnerOutput(
            req_ids=[str(i) for i in scheduled],
            req_id_to_index={str(i): k for k, i in enumerate(scheduled)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _note(self, scheduled: dict[int, int]) -> None:
        n = self.requests.num_requests
        tokens, blocks = np.zeros((2, n), dtype=np.int64)
        for i, count in scheduled.items():
            tokens[i] = count
        for i, request in list(self._requests.items()):
            self._preemptions[i] = request.num_preemptions
            if request.num_computed_tokens > 0:
                self._computed[i] = request.num_computed_tokens
            if request.is_finished():
                del self._requests[i]
            else:
                blocks[i] = len(self.scheduler.kv_cache_manager.get_block_ids(str(i))[0])
        if not scheduled:
            self.run_.idle_steps += 1
            return
        self.run_.iterations.append(
            Iteration(
                time_s=self.clock.now_s,
                tokens=tokens,
                blocks=blocks,
                generated_tokens=np.array([len(t) for t in self.run_.token_times_s]),
                preemptions=self._preemptions.copy(),
            )
        )


def compare(ours: Run, vllms: Run) -> None:
    """Two runs are the same, iteration by iteration; AssertionError names the first difference."""
    for k, (one, other) in enumerate(zip_longest(ours.iterations, vllms.iterations)):
        assert one is not None and other is not None, f"one of the two has {k} iterations only"
        for name in ("tokens", "preemptions", "generated_tokens", "blocks", "time_s"):
            values = getattr(one, name), getattr(other, name)
            assert np.array_equal(*values), f"iteration {k}, {name}: {values[0]}, vLLM {values[1]}"
    assert ours.token_times_s == vllms.token_times_s
    if vllms.decisions:
        _compare_decisions(ours, vllms)


def _compare_decisions(ours: Run, vllms: Run) -> None:
    """Policies saw the same and said the same."""
    for k, pair in enumerate(zip_longest(ours.decisions, vllms.decisions)):
        assert None not in pair, f"one of the two has {k} decisions only"
        (shown, said), (vllm_shown, vllm_said) = pair
        for item in fields(shown):
            values = getattr(shown, item.name), getattr(vllm_shown, item.name)
            # The adapter dates an arrival back from now, which rounds.
            same = (
                np.allclose(*values, rtol=1e-12, atol=1e-12)
                if isinstance(values[0], np.ndarray)
                else values[0] == values[1]
            )
            assert same, f"decision {k}, {item.name}: {values[0]}, vLLM {values[1]}"
        assert np.array_equal(said.order, vllm_said.order), f"decision {k}, order"
        assert np.array_equal(said.action, vllm_said.action), f"decision {k}, action"
