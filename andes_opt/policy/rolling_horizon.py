"""Rolling horizon: several slots of the future planned at once, by an integer program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, hstack, identity, kron, vstack

from andes_opt import checks
from andes_opt.policy.andes import calm_iterations
from andes_opt.policy.packing import slack_s
from andes_opt.policy.prefill_share import PrefillShare
from andes_opt.policy.survival import FIRST_TOKENS, ReplyLengths
from andes_opt.snapshot import Action, Decision, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot

#: Seconds of reading that a plan leaves room for.
_GROWTH_S = 5.0


class RollingHorizon:
    """
    A prototype: plans which requests are served in each of the next slots.

    Andes decides one step at a time. This policy looks ``slots`` slots of ``slot_s`` seconds
    ahead and decides for every request and slot whether it is served. HiGHS minimises the
    readers' starvation (tokens that they could have read but did not have, as shares of the
    expected reply) plus the stalls by evictions, subject to memory and batch size in each slot.
    The first slot is carried out; every ``replan_s`` seconds the program is solved again. Between
    solves, free room is filled in order of slack, without evictions.

    Parameters
    ----------
    slots
        Slots ahead, >= 1.
    slot_s
        Their length, > 0.
    replan_s
        Seconds of the engine's clock between solves, > 0.
    stall_price
        Price of a second's stall in what all served readers read in it, >= 0.
    candidates
        Most requests in the program: residents, and the most urgent others, >= 1.
    relative_gap
        Gap at which HiGHS stops, >= 0.
    nodes
        Most branch-and-bound nodes of a solve, >= 1; a limit on time would make runs differ.
    kv_pressure
        Share of the KV cache below which everybody is served, as in Andes, in (0, 1].
    prior_tokens
        Mean reply length to assume before any reply is seen, > 0.
    prefill_share
        Whether token rates are lessened by the share of time that goes into prompts, measured from
        snapshots (:mod:`andes_opt.policy.prefill_share`).

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        *,
        slots: int = 4,
        slot_s: float = 8.0,
        replan_s: float = 1.0,
        stall_price: float = 1.0,
        candidates: int = 200,
        relative_gap: float = 0.02,
        nodes: int = 50,
        kv_pressure: float = 0.9,
        prior_tokens: float = 300.0,
        prefill_share: bool = False,
    ) -> None:
        for name, value in (("slot_s", slot_s), ("replan_s", replan_s)):
            checks.positive(name, value)
        for name, value in (("stall_price", stall_price), ("relative_gap", relative_gap)):
            checks.non_negative(name, value)
        for name, count in (("slots", slots), ("candidates", candidates), ("nodes", nodes)):
            checks.whole(name, count, 1)
        checks.share("kv_pressure", kv_pressure)
        self._slots = slots
        self._slot_s = slot_s
        self._replan_s = replan_s
        self._stall_price = stall_price
        self._candidates = candidates
        self._relative_gap = relative_gap
        self._nodes = nodes
        self._kv_pressure = kv_pressure
        self._replies = ReplyLengths(prior_tokens)
        self._prefill_share = PrefillShare() if prefill_share else None

        self._wanted: set[int] = set()  # who the plan serves now
        self._solved_s = -float("inf")
        self._newest = -1  # latest request that the plan knows of
        self._ids = self._generated = np.empty(0, dtype=np.int64)  # of the last snapshot
        self._round_trip_s = -1.0  # seconds that evicting and restoring a KV token take

    def decide(self, snapshot: Snapshot) -> Decision:
        """Pass through without pressure; else follow the plan, made again when it is due."""
        self._ids, self._generated = snapshot.request_id, snapshot.generated_tokens
        if self._prefill_share is not None:
            snapshot = self._prefill_share.slowed(snapshot)
        if (calm := calm_iterations(snapshot, self._kv_pressure)) > 0:
            self._solved_s = -float("inf")
            # Seldom enough to cost nothing, often enough to see how long replies get.
            return Decision(replan_after=min(calm, FIRST_TOKENS))

        slack = slack_s(snapshot)
        if snapshot.time_s >= self._solved_s + self._replan_s:
            chosen = self._solve(snapshot, slack)
            self._wanted = set(snapshot.request_id[chosen].tolist())
            self._newest = int(snapshot.request_id.max())
            self._solved_s = snapshot.time_s

        resident = snapshot.kv_tokens > 0
        wanted = np.array([key in self._wanted for key in snapshot.request_id.tolist()])
        known = snapshot.request_id <= self._newest
        # The plan first; then whom serving costs nothing, those who came since, and the rest.
        rank = np.select([wanted, resident, ~known], [0, 1, 2], 3)
        order = np.lexsort((slack, ~resident, rank))
        return Decision(action=self._packed(snapshot, order, rank), order=order, replan_after=1)

    def finished(self, request_id: int) -> None:
        """Learn from the reply's length, as far as it has been seen."""
        known = np.flatnonzero(self._ids == request_id)
        if known.size:
            # At least one token has come since the last snapshot: the one that ended it.
            self._replies.observe(int(self._generated[known[0]]) + 1)
        self._wanted.discard(request_id)

    def _packed(
        self, snapshot: Snapshot, order: NDArray[np.int64], rank: NDArray[np.int64]
    ) -> NDArray[np.int8]:
        action = np.full(order.size, Action.WAIT, dtype=np.int8)
        capacity, slots = snapshot.capacity_tokens, snapshot.max_batch
        # Filling up leaves room for what the batch reads until the next solve.
        speed = np.minimum(snapshot.tds, 1.0 / snapshot.latency.iteration_s(1, 0.0))
        reserve = int(min(_GROWTH_S, 2 * self._replan_s) * float(speed[rank == 0].sum()))
        for i in order:
            need = int(snapshot.need_tokens[i])
            spare = reserve if rank[i] >= 2 and slots < snapshot.max_batch else 0
            if slots > 0 and need + spare <= capacity:
                action[i] = Action.SERVE
                capacity -= need
                slots -= 1
        return action

    def _solve(self, snapshot: Snapshot, slack: NDArray[np.float64]) -> NDArray[np.int64]:
        """Who is served in the first slot: indices into the snapshot."""
        resident = snapshot.kv_tokens > 0
        chosen = np.lexsort((slack, ~resident))[: self._candidates]
        left = self._expected_left(snapshot.generated_tokens)
        speed = snapshot.tds
        before_s = np.maximum(0.0, snapshot.arrival_s + snapshot.ttft_s - snapshot.time_s)
        growth = np.minimum(left, _GROWTH_S * speed)
        weights = np.minimum(snapshot.need_tokens + growth, snapshot.capacity_tokens)
        fitting = max(1, min(int(snapshot.capacity_tokens / weights.mean()), snapshot.max_batch))
        rate = 1.0 / snapshot.latency.iteration_s(fitting, fitting * float(weights.mean()))
        value = 1.0 / np.maximum(1.0, snapshot.generated_tokens + left)
        stalled = self._stall_price * fitting * float((value * speed).mean())
        problem = SlotProblem(
            weights=weights[chosen],
            value=value[chosen],
            backlog=np.maximum(0.0, snapshot.generated_tokens - snapshot.digested)[chosen],
            left=left[chosen],
            speed=speed[chosen],
            before_s=before_s[chosen],
            resident=resident[chosen],
            eviction_cost=np.asarray(
                stalled * self._per_token_s(snapshot) * snapshot.need_tokens[chosen],
                dtype=np.float64,
            ),
            capacity=float(snapshot.capacity_tokens),
            max_batch=snapshot.max_batch,
            rate=rate,
            slots=self._slots,
            slot_s=self._slot_s,
        )
        served = problem.solve(self._relative_gap, self._nodes)
        # Without any solution within the limit: the most urgent.
        return chosen if served is None else chosen[served[:, 0]]

    def _expected_left(self, generated: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected tokens to come, given those that came, (n,)."""
        edges, share = self._replies.support(generated)
        middle = 0.5 * (edges[:-1] + edges[1:])
        longer = middle[None, :] > generated[:, None]
        mass = (share * longer).sum(axis=1)
        mean = (share * middle * longer).sum(axis=1) / np.maximum(mass, 1e-12)
        return np.asarray(np.where(mass > 0, np.maximum(1.0, mean - generated), 16.0))

    def _per_token_s(self, snapshot: Snapshot) -> float:
        """Seconds that evicting and restoring a KV token stall the engine."""
        if self._round_trip_s < 0:
            self._round_trip_s = snapshot.latency.per_prefill_token_s
        away = snapshot.state == State.PREEMPTED
        tokens = int((snapshot.prompt_tokens + snapshot.generated_tokens)[away].sum())
        if tokens > 0:
            both_ways_s = 2.0 * float(snapshot.restore_s[away].sum()) / tokens
            self._round_trip_s = min(both_ways_s, snapshot.latency.per_prefill_token_s)
        return self._round_trip_s


@dataclass(frozen=True, slots=True, eq=False)
class SlotProblem:
    """
    Which requests are served in which slot, as an integer program.

    With x[i, k] = 1 if request i is served in slot k, e[i, k] its eviction at the slot's
    start, and z[i, k] the tokens that its reader lacks at the slot's end:

    minimise   mean over k of sum_i value_i z[i, k]  +  sum_ik eviction_cost_i e[i, k]

    subject to sum_i weights_i x[i, k] <= capacity,  sum_i x[i, k] <= max_batch,
    e[i, k] >= x[i, k - 1] - x[i, k], and z[i, k] >= the tokens that i reads by the end of
    slot k if it is never kept waiting, less its backlog and what it is served until then.

    Parameters
    ----------
    weights, value, backlog, left, speed, before_s, resident, eviction_cost
        Of each request, (n,): KV tokens, worth of a token, undigested tokens, expected
        tokens to come, tokens/s read, seconds until reading begins, whether its KV is on
        the GPU, cost of evicting it.
    capacity, max_batch
        KV tokens, and most requests at once.
    rate
        Tokens/s that a served request gets.
    slots, slot_s
        Number of slots, and their length.
    """

    weights: NDArray[np.float64]
    value: NDArray[np.float64]
    backlog: NDArray[np.float64]
    left: NDArray[np.float64]
    speed: NDArray[np.float64]
    before_s: NDArray[np.float64]
    resident: NDArray[np.bool_]
    eviction_cost: NDArray[np.float64]
    capacity: float
    max_batch: int
    rate: float
    slots: int
    slot_s: float

    def solve(self, relative_gap: float, nodes: int) -> NDArray[np.bool_] | None:
        """
        Solve by HiGHS.

        Parameters
        ----------
        relative_gap, nodes
            Gap at which HiGHS stops, and most nodes that it looks at.

        Returns
        -------
        NDArray[np.bool_] or None
            Who is served in which slot, (n, slots); None if no solution was found.
        """
        n, slots = self.weights.size, self.slots
        each = identity(n, format="csr")
        ones = csr_matrix(np.ones((1, n)))
        time = identity(slots, format="csr")
        until = csr_matrix(np.tril(np.ones((slots, slots))))
        before = csr_matrix(np.eye(slots, k=-1))
        nothing = csr_matrix((slots, n * slots))

        # Variables slot by slot: x, then e, then z.
        memory = hstack([kron(time, csr_matrix(self.weights)), nothing, nothing])
        places = hstack([kron(time, ones), nothing, nothing])
        empty = csr_matrix((n * slots, n * slots))
        unit = identity(n * slots, format="csr")
        evicted = hstack([kron(time, each) - kron(before, each), unit, empty])
        supplied = hstack([self.rate * self.slot_s * kron(until, each), empty, unit])

        ends_s = self.slot_s * np.arange(1, slots + 1)[:, None]
        wanted = self.speed * np.maximum(0.0, ends_s - self.before_s)
        wanted = np.minimum(wanted, self.backlog + self.left) - self.backlog
        at_start = np.zeros((slots, n))
        at_start[0] = self.resident
        constraints = LinearConstraint(
            vstack([memory, places, evicted, supplied], format="csr"),
            np.concatenate([np.full(2 * slots, -np.inf), at_start.ravel(), wanted.ravel()]),
            np.concatenate(
                [
                    np.full(slots, self.capacity),
                    np.full(slots, float(self.max_batch)),
                    np.full(2 * n * slots, np.inf),
                ]
            ),
        )
        cost = np.concatenate(
            [
                np.zeros(n * slots),
                np.tile(self.eviction_cost, slots),
                np.tile(self.value / slots, slots),
            ]
        )
        whole = np.concatenate([np.ones(n * slots), np.zeros(2 * n * slots)])
        upper = np.concatenate([np.ones(2 * n * slots), np.full(n * slots, np.inf)])
        found = milp(
            cost,
            constraints=constraints,
            bounds=Bounds(0.0, upper),
            integrality=whole,
            options={"mip_rel_gap": relative_gap, "node_limit": nodes},
        )
        if found.x is None:
            return None
        served: NDArray[np.bool_] = found.x[: n * slots].reshape(slots, n).T > 0.5
        return served
