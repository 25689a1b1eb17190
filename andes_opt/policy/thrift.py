"""Thrift: spend the KV cache where it buys most reading, and don't waste time on swapping."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.forecast import mean_tokens
from andes_opt.formulation import most_that_fit
from andes_opt.gains import COSTED, FormulaGains, rate_scalars, token_rate
from andes_opt.instance import Instance
from andes_opt.policy.andes import calm_iterations
from andes_opt.policy.packing import fill_up
from andes_opt.policy.prefill_share import PrefillShare
from andes_opt.policy.stakes import fill_stakes
from andes_opt.policy.survival import FIRST_TOKENS, ReplyLengths
from andes_opt.snapshot import Action, Decision, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from andes_opt.instance import GainModel
    from andes_opt.objective import Objective
    from andes_opt.plan import Plan
    from andes_opt.snapshot import Snapshot
    from andes_opt.solver import Solver

#: Replies that finish between two looks at the distribution of reply lengths.
_REFRESH_REPLIES = 8

_NO_LENGTHS = np.empty(0, dtype=np.int64)


class Thrift:
    """
    Our policy: Andes' knapsack with other gains, and fewer evictions.

    It differs from :class:`~andes_opt.policy.andes.Andes` in five ways:

    1. The gain of a request is its *stake*: what its reader is expected to lose of the whole
       reply's QoE if the request waits for ``horizon_s`` (:mod:`andes_opt.policy.stakes`). The
       length of the reply is unknown; its distribution is learned from the replies so far
       (:mod:`andes_opt.policy.survival`).
    2. Preemption is charged, not capped. Evicting a request and restoring it later stalls the
       engine for a time known from the snapshots. A second of the engine is worth the last
       plan's value over the seconds in which it is earned: at r tokens/s it takes
       ``horizon_s * tds / r`` to make a reader's text for the horizon. A resident request gains
       ``inertia`` times that price by staying; a preempted one loses ``readmission`` times it by
       coming back, and a new one ``admission`` times the price of its prompt's seconds.
    3. A preempted request whose reader has text for more than ``readmit_s`` seconds is not
       considered.
    4. A plan has room to grow: requests are packed with the tokens that their readers read in
       ``growth_s`` seconds. A batch that fills the cache completely evicts a request at once.
    5. What the solver leaves free goes to resident requests first. Others come in only if
       ``reserve`` of the cache stays free. Resident requests that are not served are held, not
       evicted, while the batch has places for them and the cache room beside the ``reserve``.

    While cache and batch have room for all requests, only time is scarce: an iteration with all of
    them is too slow. No request is evicted then: staying gains nothing, KV tokens don't count, and
    a stake looks only ``turn_s`` ahead, because taking turns is free. Where only places in the
    batch are scarce, KV tokens don't count either, but who leaves the batch is evicted.

    If an iteration with all that fits is slower than the fastest reader, there are two solves. The
    first settles the batch size, without the gain for staying, which would inflate it. The second
    settles which requests are in the batch, with it.

    Parameters
    ----------
    solver
        Solves each step.
    objective
        What a step maximises instead of the stakes; None for the stakes.
    horizon_s
        Seconds of waiting that a stake is about, > 0.
    turn_s
        The same while cache and batch have room for everybody, > 0; at most ``horizon_s``
        counts.
    lateness
        How much of a reader's delay counts against it, in [0, 1].
    work_power, weight_power
        Powers of the expected tokens left, and of the KV tokens, in the stake, >= 0.
    inertia, readmission
        Prices of leaving and of coming back, in stalls for a round trip, >= 0.
    admission
        Price of a new request's prompt, in the value of the time that it takes, >= 0.
    prompt_s
        Seconds of prompts under way beyond which no absent request comes in, > 0; None for no
        limit. A step that computes a long prompt keeps all readers waiting.
    readmit_s
        Seconds of backlog up to which a preempted request is a candidate, >= 0.
    reserve
        Share of the KV cache that filling up leaves free, in [0, 1).
    growth_s
        Seconds of reading that a plan leaves room for, >= 0.
    kv_pressure
        Share of the KV cache below which everybody is served, as in Andes, in (0, 1].
    prior_tokens
        Mean reply length to assume before any reply is seen, > 0.
    oracle
        Whether to use true reply lengths; the run has to tell them.
    prefill_share
        Whether token rates are lessened by the share of time that goes into prompts, measured from
        snapshots (:mod:`andes_opt.policy.prefill_share`).
    time_limit_s
        Wall-clock limit of each solve; None for none.

    Raises
    ------
    ValueError
        If an option is out of range.
    """

    def __init__(
        self,
        solver: Solver,
        objective: Objective | None = None,
        *,
        horizon_s: float = 70.0,
        turn_s: float = 30.0,
        lateness: float = 0.4,
        work_power: float = 0.0,
        weight_power: float = 0.2,
        inertia: float = 2.5,
        readmission: float = 2.0,
        admission: float = 0.0,
        prompt_s: float | None = None,
        readmit_s: float = 6.0,
        reserve: float = 0.03,
        growth_s: float = 5.0,
        kv_pressure: float = 0.9,
        prior_tokens: float = 300.0,
        oracle: bool = False,
        prefill_share: bool = False,
        time_limit_s: float | None = None,
    ) -> None:
        checks.positive("horizon_s", horizon_s)
        checks.positive("turn_s", turn_s)
        for name, value in (
            ("lateness", lateness),
            ("work_power", work_power),
            ("weight_power", weight_power),
            ("inertia", inertia),
            ("readmission", readmission),
            ("admission", admission),
            ("readmit_s", readmit_s),
            ("growth_s", growth_s),
        ):
            checks.non_negative(name, value)
        if lateness > 1:
            raise ValueError(f"lateness = {lateness} not understood: need [0, 1].")
        checks.fraction("reserve", reserve)
        checks.share("kv_pressure", kv_pressure)
        if prompt_s is not None:
            checks.positive("prompt_s", prompt_s)
        if time_limit_s is not None:
            checks.positive("time_limit_s", time_limit_s)
        self._solver = solver
        self._objective = objective
        self._horizon_s = horizon_s
        self._shape = (horizon_s, lateness, work_power, weight_power)
        self._batch_bound_shape = (horizon_s, lateness, work_power, 0.0)
        self._roomy_shape = (min(turn_s, horizon_s), lateness, work_power, 0.0)
        self._inertia = inertia
        self._readmission = readmission
        self._admission = admission
        self._prompt_s = prompt_s
        self._readmit_s = readmit_s
        self._reserve = reserve
        self._kv_pressure = kv_pressure
        self._growth_s = growth_s
        self._oracle = oracle
        self._prefill_share = PrefillShare() if prefill_share else None
        self._time_limit_s = time_limit_s

        self._replies = ReplyLengths(prior_tokens)
        self._edges, self._share = self._replies.support(_NO_LENGTHS)
        self._unseen = 0  # replies finished since then
        self._ids = self._generated = _NO_LENGTHS  # of the last snapshot
        self._price = 0.0  # value of a second of the engine
        self._round_trip_s = -1.0  # seconds that evicting and restoring a KV token take

    def decide(self, snapshot: Snapshot) -> Decision:
        """
        Pass through without pressure; else serve the solver's plan and fill up.

        Raises
        ------
        ValueError
            If true reply lengths are asked for and the snapshot has none.
        """
        self._ids, self._generated = snapshot.request_id, snapshot.generated_tokens
        undisturbed = snapshot.latency
        if self._prefill_share is not None:
            snapshot = self._prefill_share.slowed(snapshot)
        if (calm := calm_iterations(snapshot, self._kv_pressure)) > 0:
            # Seldom enough to cost nothing, often enough to see how long replies get.
            return Decision(replan_after=min(calm, FIRST_TOKENS))

        charge, candidate = self._preemption_charges(snapshot)
        charged = self._gains(snapshot, candidate)
        resident = snapshot.kv_tokens > 0
        weights, capacity = snapshot.need_tokens, snapshot.capacity_tokens
        scalars = rate_scalars(snapshot.latency, capacity, mean_tokens(weights))
        # A batch that fills the cache evicts a request a few tokens later. No reply grows faster
        # than the engine makes tokens, however fast its reader.
        speed = np.minimum(snapshot.tds, token_rate(scalars, 1))
        growing = weights + np.ceil(self._growth_s * speed).astype(np.int64)
        growing = np.minimum(growing, np.maximum(weights, capacity))
        most = min(snapshot.max_batch, most_that_fit(growing, capacity))
        before_s = 0.0, 0.0
        slots = int(_reading_batch(scalars, float(snapshot.tds.max()), snapshot.max_batch))
        if slots < most:
            # Compute binds, too. What resident requests gain by staying says nothing about how
            # large the batch should be: they can be held. So the size is settled without it.
            bare = charged(np.minimum(charge, 0.0))
            plan = self._solve(Instance(growing, capacity, min(1, most), most, bare))
            slots = most = max(slots, int(plan.serve.sum()))
            before_s = plan.build_s, plan.solve_s
        gains = charged(charge)
        plan = self._solve(Instance(growing, capacity, min(1, most), most, gains), *before_s)

        gained = gains(plan.batch_size)
        # What a second is worth that goes into decoding alone.
        if snapshot.latency is not undisturbed:
            scalars = rate_scalars(undisturbed, capacity, mean_tokens(weights))
        rate = token_rate(scalars, int(plan.serve.sum()))
        # The tokens that keep a reader busy for the horizon take tds / rate of it.
        per_second = np.maximum(1.0, rate / snapshot.tds) / self._horizon_s
        self._price = max(0.0, float(((gained - charge) * per_second)[plan.serve].sum()))
        order = np.argsort(-gained / weights, kind="stable")
        reserve = int(self._reserve * capacity)
        room = capacity, slots, snapshot.max_batch
        action = fill_up(plan.serve, resident, order, weights, room, reserve)
        if self._prompt_s is not None:
            _pace(action, order, resident, snapshot.restore_s, self._prompt_s)
        return Decision(action=action, order=order, plan=plan, replan_after=1)

    def finished(self, request_id: int) -> None:
        """Learn from the reply's length, as far as the last decision saw it."""
        known = np.flatnonzero(self._ids == request_id)
        if known.size:
            # At least one token has come since the last snapshot: the one that ended it.
            self._replies.observe(int(self._generated[known[0]]) + 1)
            self._unseen += 1

    def _solve(self, instance: Instance, build_s: float = 0.0, solve_s: float = 0.0) -> Plan:
        """The solver's plan; what a solve before it took counts, too."""
        plan = self._solver.solve(instance, time_limit_s=self._time_limit_s)
        if build_s or solve_s:
            plan = replace(plan, build_s=plan.build_s + build_s, solve_s=plan.solve_s + solve_s)
        return plan

    def _gains(
        self, snapshot: Snapshot, candidate: NDArray[np.bool_]
    ) -> Callable[[NDArray[np.float64]], GainModel]:
        """A function from charges, (n,), to the step's gains with them."""
        if self._objective is not None:
            return partial(Charged, self._objective.gains(snapshot), candidate)
        scalars = rate_scalars(
            snapshot.latency, snapshot.capacity_tokens, mean_tokens(snapshot.need_tokens)
        )
        return partial(_charged_stakes, self._stakes(snapshot, candidate), scalars)

    def _stakes(self, snapshot: Snapshot, candidate: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The requests' stakes as rows of a COSTED gain model, those of the charges left 0."""
        lengths = _NO_LENGTHS
        if self._oracle:
            if snapshot.oracle_output_tokens is None:
                raise ValueError(
                    "thrift with oracle=true needs the true reply lengths: set oracle=true for "
                    "the run, too (simulations only)."
                )
            lengths = snapshot.oracle_output_tokens
        elif self._unseen >= _REFRESH_REPLIES:
            self._edges, self._share = self._replies.support(snapshot.generated_tokens)
            self._unseen = 0
        params = np.zeros((6, snapshot.num_requests))
        fill_stakes(
            snapshot.time_s - snapshot.arrival_s,
            snapshot.generated_tokens,
            snapshot.digested,
            snapshot.ttft_s,
            snapshot.tds,
            snapshot.restore_s,
            snapshot.need_tokens,
            candidate,
            lengths,
            self._edges,
            self._share,
            *self._shape_for(snapshot),
            params,
        )
        return params

    def _shape_for(self, snapshot: Snapshot) -> tuple[float, float, float, float]:
        """Horizon, lateness and powers of the stakes, by what is scarce."""
        if _short_of_memory(snapshot):
            return self._shape
        return self._batch_bound_shape if _crowded(snapshot) else self._roomy_shape

    def _preemption_charges(
        self, snapshot: Snapshot
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What each request gains or loses besides its stake, and which are candidates, (n,)."""
        per_prefill_s = snapshot.latency.per_prefill_token_s
        if self._round_trip_s < 0:
            self._round_trip_s = per_prefill_s
        charge = np.empty(snapshot.num_requests)
        candidate = np.empty(snapshot.num_requests, dtype=np.bool_)
        self._round_trip_s = _charge(
            snapshot.kv_tokens,
            snapshot.state,
            snapshot.prompt_tokens,
            snapshot.generated_tokens,
            snapshot.need_tokens,
            snapshot.restore_s,
            snapshot.digested,
            snapshot.tds,
            self._readmit_s,
            self._inertia * self._price if _crowded(snapshot) else 0.0,
            self._readmission * self._price,
            self._admission * self._price,
            self._round_trip_s,
            per_prefill_s,
            charge,
            candidate,
        )
        return charge, candidate


class Charged:
    """
    Any gain model plus a constant charge; the gain of a request that is no candidate is 0.

    Parameters
    ----------
    gains
        The gain model.
    candidate
        False for requests whose own gain counts as 0, (n,).
    charge
        What is added to each request's gain, (n,).
    """

    def __init__(
        self, gains: GainModel, candidate: NDArray[np.bool_], charge: NDArray[np.float64]
    ) -> None:
        self._gains = gains
        self._charge = charge
        self._candidate = candidate
        self.monotone = gains.monotone
        self.concave_in_rate = gains.concave_in_rate

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        """Gains (n,) at ``batch_size``."""
        return np.where(self._candidate, self._gains(batch_size), 0.0) + self._charge

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        """Gains (last - first + 1, n)."""
        return np.where(self._candidate, self._gains.table(first, last), 0.0) + self._charge


def _charged_stakes(
    stakes: NDArray[np.float64], scalars: NDArray[np.float64], charge: NDArray[np.float64]
) -> FormulaGains:
    params = stakes.copy()
    params[4] = charge
    return FormulaGains(COSTED, params, scalars, monotone=True, concave_in_rate=True)


def _crowded(snapshot: Snapshot) -> bool:
    """False if no request has to be evicted: those that are not served are held at no cost."""
    return snapshot.num_requests > snapshot.max_batch or _short_of_memory(snapshot)


def _short_of_memory(snapshot: Snapshot) -> bool:
    return bool(snapshot.need_tokens.sum() > snapshot.capacity_tokens)


@jit
def _charge(
    kv_tokens: NDArray[np.int64],
    state: NDArray[np.int8],
    prompt_tokens: NDArray[np.int64],
    generated_tokens: NDArray[np.int64],
    need_tokens: NDArray[np.int64],
    restore_s: NDArray[np.float64],
    digested: NDArray[np.float64],
    tds: NDArray[np.float64],
    readmit_s: float,
    stay_price: float,
    return_price: float,
    enter_price: float,
    round_trip_s: float,
    per_prefill_s: float,
    charge: NDArray[np.float64],
    candidate: NDArray[np.bool_],
) -> float:
    # Fills charge and candidate; returns the seconds that a round trip takes per KV token.
    # Swapping stalls the engine both ways, recomputing once. Snapshots don't say which of the two
    # it is: twice what restoring takes, but no more than computing anew. So a swap that is
    # slower than that is charged too little, and so is any if prompts cost nothing.
    away_s, away_tokens = 0.0, 0
    for i in range(state.size):
        if state[i] == State.PREEMPTED:
            away_s += restore_s[i]
            away_tokens += prompt_tokens[i] + generated_tokens[i]
    if away_tokens > 0:
        round_trip_s = min(2.0 * away_s / away_tokens, per_prefill_s)

    for i in range(state.size):
        charge[i] = 0.0
        candidate[i] = True
        if kv_tokens[i] > 0:
            charge[i] = stay_price * round_trip_s * need_tokens[i]
        elif state[i] == State.PREEMPTED:
            charge[i] = -return_price * round_trip_s * need_tokens[i]
            candidate[i] = generated_tokens[i] - digested[i] <= readmit_s * tds[i]
        else:
            charge[i] = -enter_price * restore_s[i]
    return round_trip_s


@jit
def _reading_batch(scalars: NDArray[np.float64], fastest_tds: float, max_batch: int) -> int:
    # The largest batch that is still faster than the fastest reader, at least 1.
    slots = max_batch
    while slots > 1 and token_rate(scalars, slots) < fastest_tds:
        slots -= 1
    return slots


@jit
def _pace(
    action: NDArray[np.int8],
    order: NDArray[np.int64],
    resident: NDArray[np.bool_],
    restore_s: NDArray[np.float64],
    prompt_s: float,
) -> None:
    # Put off absent requests whose prompts would make the work under way longer than `prompt_s`;
    # one comes in if nothing is under way.
    under_way_s = 0.0
    for i in range(action.size):
        if resident[i] and action[i] == Action.SERVE:
            under_way_s += restore_s[i]
    for i in order:
        if action[i] == Action.SERVE and not resident[i]:
            if under_way_s > 0.0 and under_way_s + restore_s[i] > prompt_s:
                action[i] = Action.WAIT
            else:
                under_way_s += restore_s[i]
