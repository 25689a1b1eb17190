"""
The best schedule of a tiny workload, by trying all of them: a check of the hindsight bound.

Every iteration each request that has arrived is served, held or left waiting (evicted), under
the rules of the simulated engine (:mod:`andes_opt.engine_loop`) with prompts that fit its token
budget whole. The search cuts branches that could not beat the best schedule found even if all
requests were served at once from now on. The number of schedules grows exponentially: three
requests of half a dozen tokens are about the limit.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import qoe
from andes_opt.engine import EngineProfile, as_served
from andes_opt.latency import LatencyModel
from andes_opt.snapshot import Action, Decision
from andes_opt.workload import Requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from andes_opt.snapshot import Snapshot

#: Window QoE by which a branch's upper limit has to exceed the best schedule so far.
_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Optimum:
    """
    The best schedule.

    Parameters
    ----------
    mean_window
        Its mean ``window`` QoE; no schedule of the engine has more.
    actions
        For each iteration the :class:`~andes_opt.snapshot.Action` of each active request, by
        its number; :class:`Replay` carries them out.
    nodes
        States that the search looked at.
    """

    mean_window: float
    actions: tuple[Mapping[int, int], ...]
    nodes: int


def optimum(requests: Requests, engine: EngineProfile) -> Optimum:
    """
    Search all schedules of a tiny workload.

    Parameters
    ----------
    requests
        What arrives when; nothing that the engine would reject.
    engine
        The engine's profile.

    Raises
    ------
    ValueError
        If there is no request, one that can never fit, or more prompt and reply tokens than
        an iteration's token budget, where the rules of the search would not be the engine's.
    """
    requests, refused = as_served(requests, engine)
    total = requests.prompt_tokens + requests.output_tokens
    if total.size == 0:
        raise ValueError("the best schedule of no requests is not understood.")
    if refused.any():
        raise ValueError(f"a request of {total[refused].max()} tokens can never fit.")
    if total.sum() > engine.token_budget or total.size > engine.max_batch:
        raise ValueError(
            f"{total.sum()} tokens of {total.size} requests not understood: need all of them to "
            f"fit an iteration ({engine.token_budget} tokens, {engine.max_batch} requests)."
        )
    if engine.preemption == "recompute" and engine.recompute_hit_share > 0:
        raise ValueError(
            "recompute_hit_share > 0 not understood: the search knows no prefix cache."
        )
    if engine.watermark_blocks > 0:
        raise ValueError(
            f"watermark = {engine.watermark} not understood: the search fills the KV cache."
        )
    search = _Search(requests, engine)
    n = requests.num_requests
    search.visit(_Moment(0.0, (0,) * n, (0,) * n, (0,) * n, (-math.inf,) * n, 0.0, ()))
    return Optimum(
        mean_window=min(1.0, search.best.value / n),
        actions=search.best.actions,
        nodes=search.nodes,
    )


def tiny_problem(
    seed: int, preemption: Literal["swap", "recompute"]
) -> tuple[Requests, EngineProfile]:
    """
    Two or three requests on an engine with KV for one or two of them.

    Here the relaxation of :mod:`andes_opt.hindsight` leaves out most: memory that whole requests
    can't fill, moving KV, iterations that are shared.

    Parameters
    ----------
    seed
        Of lengths, arrivals and readers.
    preemption
        How the engine preempts.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 4))
    requests = Requests(
        arrival_s=np.sort(rng.uniform(0, 0.1, n)),
        prompt_tokens=rng.integers(2, 12, n),
        output_tokens=rng.integers(2, 8 if n == 2 else 6, n),
        ttft_s=rng.choice([0.05, 0.1], n),
        tds=rng.uniform(20.0, 50.0, n),
    )
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    engine = EngineProfile(
        name="tiny",
        latency=LatencyModel(
            base_s=0.02, per_request_s=8e-3, per_context_token_s=1e-6, per_prefill_token_s=2e-3
        ),
        capacity_tokens=max(16, 2 * math.ceil(longest / 2)),
        block_tokens=2,
        max_batch=64,
        token_budget=512,
        preemption=preemption,
        swap_s_per_token=1e-3,
    )
    return requests, engine


class Replay:
    """
    The policy that carries out a schedule's actions, then passes through.

    Parameters
    ----------
    actions
        Of an :class:`Optimum`.
    """

    def __init__(self, actions: Sequence[Mapping[int, int]]) -> None:
        self._actions = iter(actions)

    def decide(self, snapshot: Snapshot) -> Decision:
        """The next iteration's actions."""
        action = next(self._actions, None)
        if action is None:
            return Decision()
        return Decision(
            action=np.array([action[i] for i in snapshot.request_id.tolist()], dtype=np.int8),
            order=np.arange(snapshot.num_requests),
        )

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """A state of the search; one entry per request in each tuple but the last."""

    now_s: float
    computed: tuple[int, ...]
    generated: tuple[int, ...]
    blocks: tuple[int, ...]  # 0 if not resident
    begun_s: tuple[float, ...]  # digestion of the last token, since arrival
    value: float
    actions: tuple[Mapping[int, int], ...]


class _Search:
    """Depth-first search that cuts branches by an upper limit on their value."""

    def __init__(self, requests: Requests, engine: EngineProfile) -> None:
        self._requests = requests
        self._engine = engine
        self.best = _Moment(0.0, (), (), (), (), -1.0, ())
        self.nodes = 0

    def visit(self, m: _Moment) -> None:
        """Look at a state and all that can follow."""
        self.nodes += 1
        if m.value + self._hope(m) <= self.best.value + _TOLERANCE:
            return
        if m.value > self.best.value:
            self.best = m
        arrival_s, output = self._requests.arrival_s, self._requests.output_tokens
        left = [i for i in range(arrival_s.size) if m.generated[i] < output[i]]
        if not left:
            return
        active = [i for i in left if arrival_s[i] <= m.now_s]
        if not active:
            self.visit(replace(m, now_s=float(min(arrival_s[i] for i in left))))
            return
        choices = (int(Action.SERVE), int(Action.HOLD), int(Action.WAIT))
        for choice in itertools.product(choices, repeat=len(active)):
            following = self._step(m, dict(zip(active, choice, strict=True)), len(left))
            if following is not None:
                self.visit(following)

    def _token_value(self, i: int, begun_s: float) -> float:
        n, tds = int(self._requests.output_tokens[i]), float(self._requests.tds[i])
        end_s = float(self._requests.ttft_s[i]) + n / tds
        return qoe.token_window_area(end_s - begun_s, tds) * 2 * tds / n**2

    def _begin(self, i: int, age_s: float, before_s: float) -> float:
        ttft_s, tds = float(self._requests.ttft_s[i]), float(self._requests.tds[i])
        return max(age_s, ttft_s, before_s + 1 / tds)

    def _hope(self, m: _Moment) -> float:
        """The value that could still be gained if the engine served all requests at once."""
        total = 0.0
        for i in range(self._requests.num_requests):
            begun_s = m.begun_s[i]
            age_s = max(0.0, m.now_s - float(self._requests.arrival_s[i]))
            for _ in range(m.generated[i], int(self._requests.output_tokens[i])):
                age_s += self._engine.latency.least_base_s
                begun_s = self._begin(i, age_s, begun_s)
                total += self._token_value(i, begun_s)
        return total

    def _step(self, m: _Moment, action: dict[int, int], left: int) -> _Moment | None:
        """One engine iteration; None for a step that is impossible or pointless."""
        engine, latency = self._engine, self._engine.latency
        computed, generated, blocks = list(m.computed), list(m.generated), list(m.blocks)
        begun_s, value, moving_s = list(m.begun_s), m.value, 0.0
        served = [i for i in action if action[i] == Action.SERVE]
        if not served and left == len(action):
            return None  # idling while no arrival is to come
        for i, wish in action.items():
            if wish == Action.HOLD and not blocks[i]:
                return None  # nothing to hold
            if wish == Action.WAIT and blocks[i]:
                if engine.preemption == "swap":
                    moving_s += computed[i] * engine.swap_s_per_token
                else:
                    computed[i] = 0
                blocks[i] = 0
        prefill = decoding = context = 0
        for i in served:
            total = int(self._requests.prompt_tokens[i]) + generated[i]
            if not blocks[i]:
                moving_s += computed[i] * engine.swap_s_per_token  # 0 computed: nothing to move
            if generated[i] and total - computed[i] == 1:
                decoding, context = decoding + 1, context + total
            else:
                prefill += total - computed[i]
            computed[i], blocks[i] = total, -(-total // engine.block_tokens)
        if sum(blocks) > engine.num_blocks:
            return None
        now_s = m.now_s + latency.iteration_s(decoding, context, prefill) + moving_s
        for i in served:
            age_s = now_s - float(self._requests.arrival_s[i])
            begun_s[i] = self._begin(i, age_s, begun_s[i])
            value += self._token_value(i, begun_s[i])
            generated[i] += 1
            if generated[i] == self._requests.output_tokens[i]:
                blocks[i] = 0
        return _Moment(
            now_s,
            tuple(computed),
            tuple(generated),
            tuple(blocks),
            tuple(begun_s),
            value,
            (*m.actions, action),
        )
