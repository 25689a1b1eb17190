r"""
What no scheduler can beat: an upper bound on the mean ``window`` QoE of a workload.

The bound holds for every scheduler on the simulated engine (:mod:`andes_opt.simulator`), even for
one that knows all arrivals and lengths and moves KV at no cost. It is the value of a Lagrangian
relaxation: engine time gets a price :math:`\lambda(t) \ge 0`, and each request buys the service
that is worth most to it at these prices.

**Work.** An iteration of :math:`\tau` seconds that serves the requests S takes
:math:`\tau \ge base + \sum_{i \in S} c_i`, where :math:`c_i` is what the request's own
tokens cost (a decoded token: per_request + per_context * context; a prompt:
per_prefill * tokens; base and per_request without what prefill beside decodes adds, and less what
it saves). The KV of S fits, :math:`\sum_S m_i \le M` in whole blocks; S has at
most max_batch requests and computes at most token_budget tokens. So with any weights
:math:`\sigma_1 + \sigma_2 + \sigma_3 = 1, \sigma \ge 0`

.. math::
    \tau \;\ge\; \sum_{i \in S} w_i, \qquad
    w_i = c_i + base \left(\sigma_1 \frac{m_i}{M} + \sigma_2 \frac{1}{max\_batch}
          + \sigma_3 \frac{tokens_i}{token\_budget}\right).

This is single-machine scheduling: each token needs at least ``w`` seconds of one machine.
(After an eviction with recomputation a token may come out of a prefill of what the prefix
cache has lost; its ``c`` is the cheaper of the two.) The prompt may be computed in chunks; their
costs add up, and the KV held and the requests counted are those of the fewest chunks, each as
full as the budget allows.

**Weak duality.** Iterations do not overlap. Weigh each with the mean of :math:`\lambda` over
its duration: the work of all tokens, so weighted, is at most :math:`\int \lambda`. A token
delivered at d is computed between its request's arrival a and d, so its work is weighed with
no less than :math:`\Lambda(d) = \min_{[a, d]} \lambda`. Hence for every schedule

.. math::
    \sum_i QoE_i \;\le\; \int \lambda(t)\,dt + \sum_i \Bigl( QoE_i
    - \sum_j w_{ij} \Lambda_i(d_{ij}) \Bigr).

Digestion of token j starts at :math:`c_j \ge \max(d_j, c_{j-1} + 1/tds, ttft)`, and
:math:`\Lambda` does not rise, so that :math:`\Lambda(d_j) \ge \Lambda(c_j)`. The bracket then
depends on :math:`c_1 < c_2 < \dots` alone; its maximum over all c with gaps of at least
1/tds, and none before the earliest moment at which any engine could deliver the token, bounds it.
The lateness :math:`c_j - (ttft + (j-1)/tds)` does not fall from token to token: dynamic
programming over (token, lateness) finds the maximum, with lateness in cells and each cell
at its best value and its lowest price (:mod:`andes_opt.hindsight.dp`).

So *any* prices give a valid bound. Good ones come from the duals of a linear program
(:mod:`andes_opt.hindsight.lp`, HiGHS); nothing else of HiGHS's answer is used. The dual
function is convex, hence the prices are finally scaled by a line search.

**What it leaves out**, each omission only raising the bound: KV that is resident but idle,
moving KV at a preemption, memory that whole requests can't fill, and that a token takes as
long as the iteration it shares, not just ``w``. It is therefore close where batches are
large and loads moderate; with two requests in memory, or bursts that need many turns, it is
loose (against the best of all schedules: :mod:`andes_opt.hindsight.exhaustive`).

Lagrangian bounds of this kind: M. L. Fisher, Management Science 27(1), 1981.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.engine import as_served
from andes_opt.hindsight.dp import most_profits
from andes_opt.hindsight.lp import fluid_prices
from andes_opt.workload import Requests

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from andes_opt.engine import EngineProfile

#: The limits of an iteration by which its base time can be divided among requests.
LIMITS = ("kv_memory", "max_batch", "token_budget")

#: Added to every bound: above the rounding of sums of up to a million terms below 1.
_ROUNDING = 1e-9

#: The line search: cells of its lateness grid, and its steps.
_COARSE_CELLS = 120
_SEARCH_STEPS = 9


@dataclass(frozen=True, slots=True, eq=False)
class HindsightBound:
    """
    An upper bound on the mean ``window`` QoE, and the prices that prove it.

    Parameters
    ----------
    mean_window
        No scheduler's mean ``window`` QoE exceeds it. In [0, 1]; rejected requests count 0.
    prices
        The certificate: price of a second of engine time by slot, (slots,), in QoE of one
        request per second. :func:`bound_at_prices` recomputes the bound from it.
    slot_s
        Seconds of a slot.
    shares
        Weights of :data:`LIMITS` in the work of a token, (3,), sum 1.
    cells
        Cells of the lateness grid.
    lp_value
        Mean ``window`` QoE by HiGHS's optimum of the fluid program, for comparison only: not
        a bound. NaN if HiGHS gave none.
    profit
        Each request's QoE minus the price of its work at best, (n,); 0 for rejected ones.
        Their sum and that of ``prices * slot_s`` are the bound.
    rejected
        True for requests that can never fit, (n,).
    build_s, solve_s
        Wall-clock seconds. ``build_s``: the work per token, the model and HiGHS; ``solve_s``:
        the line search and the final evaluation.
    """

    mean_window: float
    prices: NDArray[np.float64]
    slot_s: float
    shares: NDArray[np.float64]
    cells: int
    lp_value: float
    profit: NDArray[np.float64]
    rejected: NDArray[np.bool_]
    build_s: float
    solve_s: float


def window_bound(
    requests: Requests,
    engine: EngineProfile,
    *,
    slot_s: float = 8.0,
    cells: int = 400,
    time_limit_s: float | None = None,
) -> HindsightBound:
    """
    Bound the mean ``window`` QoE of every scheduler on an engine.

    Parameters
    ----------
    requests
        What arrives when.
    engine
        The engine's profile. Its swap times are not used: the bound lets KV move for free.
    slot_s
        Seconds of a price slot, > 0. Shorter slots cost time and hardly tighten the bound.
    cells
        Cells of the lateness grid, >= 1.
    time_limit_s
        Limit for HiGHS and for starting another step of the line search. The bound is valid
        whenever they stop; at worst it is 1.

    Raises
    ------
    ValueError
        If there is no request, or an option is out of range.
    """
    _check_grid(slot_s, cells)
    if time_limit_s is not None and not time_limit_s > 0:
        raise ValueError(f"time_limit_s = {time_limit_s} <= 0 not understood.")
    started = time.perf_counter()
    problem = _Problem.of(requests, engine)
    served = problem.served
    if served.num_requests == 0:
        prices = np.zeros(0)
        shares = np.array([1.0, 0.0, 0.0])
        mean, profit = bound_at_prices(
            requests, engine, prices, slot_s=slot_s, shares=shares, cells=cells
        )
        lp_value = 0.0
        built = time.perf_counter()
    else:
        window_end_s = served.arrival_s + served.ttft_s + served.output_tokens / served.tds
        slots = int(window_end_s.max() / slot_s) + 1
        fluid = fluid_prices(
            served, problem.offsets, problem.work_by_limit(), slots, slot_s, time_limit_s
        )
        prices, shares = _combine(fluid.by_limit)
        lp_value = fluid.value / requests.num_requests
        built = time.perf_counter()

        deadline = math.inf if time_limit_s is None else started + time_limit_s
        work_s = problem.work(shares)
        prices = prices * _best_scale(problem, work_s, prices, slot_s, deadline)
        mean, profit = _evaluate(problem, work_s, prices, slot_s, cells)

    return HindsightBound(
        mean_window=mean,
        prices=prices,
        slot_s=slot_s,
        shares=shares,
        cells=cells,
        lp_value=lp_value,
        profit=profit,
        rejected=problem.rejected,
        build_s=built - started,
        solve_s=time.perf_counter() - built,
    )


def bound_at_prices(
    requests: Requests,
    engine: EngineProfile,
    prices: ArrayLike,
    *,
    slot_s: float,
    shares: ArrayLike = (1.0, 0.0, 0.0),
    cells: int = 400,
) -> tuple[float, NDArray[np.float64]]:
    """
    The bound that given prices prove: weak duality, without a solver.

    Parameters
    ----------
    requests, engine
        As in :func:`window_bound`.
    prices
        Price of a second of engine time by slot, (slots,), finite and >= 0; 0 afterwards.
    slot_s
        Seconds of a slot, the first of which starts at 0.
    shares
        Weights of :data:`LIMITS`, (3,), >= 0, sum 1.
    cells
        Cells of the lateness grid, >= 1.

    Returns
    -------
    tuple[float, NDArray[np.float64]]
        The bound on the mean, and each request's profit, (n,).

    Raises
    ------
    ValueError
        If there is no request, or an argument is out of range.
    """
    price_array = np.ascontiguousarray(prices, dtype=np.float64)
    weights = np.asarray(shares, dtype=np.float64)
    if price_array.ndim != 1 or not (np.isfinite(price_array).all() and (price_array >= 0).all()):
        raise ValueError("prices must be (slots,), finite and >= 0.")
    if weights.shape != (len(LIMITS),) or not ((weights >= 0).all() and weights.sum() <= 1 + 1e-12):
        raise ValueError(
            f"shares = {weights.tolist()} not understood: need 3 numbers >= 0 with sum 1."
        )
    _check_grid(slot_s, cells)
    problem = _Problem.of(requests, engine)
    return _evaluate(problem, problem.work(weights), price_array, slot_s, cells)


def _check_grid(slot_s: float, cells: int) -> None:
    checks.positive("slot_s", slot_s)
    checks.whole("cells", cells, 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """The requests that are not rejected, and arrays with an entry per token of theirs."""

    served: Requests
    rejected: NDArray[np.bool_]  # of all requests
    offsets: NDArray[np.int64]  # served request i has the tokens offsets[i] to offsets[i + 1]
    own_s: NDArray[np.float64]  # (tokens,) what each token adds to its iteration
    base_shares_s: NDArray[np.float64]  # (3, tokens) its share of the base time, by limit
    earliest_s: NDArray[np.float64]  # (tokens,) since arrival

    @classmethod
    def of(cls, requests: Requests, engine: EngineProfile) -> _Problem:
        if requests.num_requests == 0:
            raise ValueError("a bound on the mean QoE of no requests is not understood.")
        requests, rejected = as_served(requests, engine)
        kept = ~rejected
        served = Requests(
            arrival_s=requests.arrival_s[kept],
            prompt_tokens=requests.prompt_tokens[kept],
            output_tokens=requests.output_tokens[kept],
            ttft_s=requests.ttft_s[kept],
            tds=requests.tds[kept],
        )
        offsets = np.concatenate(([0], np.cumsum(served.output_tokens))).astype(np.int64)
        parts = [
            _token_work(int(prompt), int(output), engine)
            for prompt, output in zip(served.prompt_tokens, served.output_tokens, strict=True)
        ]
        if not parts:
            return cls(served, rejected, offsets, np.empty(0), np.empty((3, 0)), np.empty(0))
        own_s, base_shares_s, earliest_s = zip(*parts, strict=True)
        return cls(
            served,
            rejected,
            offsets,
            np.concatenate(own_s),
            np.concatenate(base_shares_s, axis=1),
            np.concatenate(earliest_s),
        )

    def work(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Engine time of each token for given weights of the limits, (tokens,)."""
        return np.asarray(self.own_s + shares @ self.base_shares_s)

    def work_by_limit(self) -> NDArray[np.float64]:
        """Engine time of each token under each limit alone, (3, tokens)."""
        return self.own_s + self.base_shares_s


def _token_work(
    prompt: int, output: int, engine: EngineProfile
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """
    Own cost, base shares by limit, and earliest delivery of each token of a request.

    Token 0 comes out of the iteration that completes the prompt; token j attends to
    ``prompt + j`` tokens, which is also what its request then holds.
    """
    latency, block, budget = engine.latency, engine.block_tokens, engine.token_budget
    context = prompt + np.arange(output)
    own_s = np.asarray(
        latency.least_per_request_s + latency.per_context_token_s * context, dtype=np.float64
    )
    if engine.preemption == "recompute":
        cached = np.floor(engine.recompute_hit_share * (context - 1))
        own_s = np.minimum(own_s, latency.per_prefill_token_s * (context - cached))
    own_s[0] = latency.per_prefill_token_s * prompt

    # After the last chunk but r at least prompt - r * budget tokens are in the cache.
    chunks = -(-prompt // budget)
    held = prompt - budget * np.arange(chunks)
    kv_blocks = (-(-context // block)).astype(np.float64)
    kv_blocks[0] = (-(-held // block)).sum()
    slots = np.ones(output)
    slots[0] = chunks
    computed = np.ones(output)
    computed[0] = prompt
    base_shares_s: NDArray[np.float64] = latency.least_base_s * np.stack(
        [kv_blocks / engine.num_blocks, slots / engine.max_batch, computed / budget]
    )

    iteration_s = latency.least_base_s + own_s
    iteration_s[0] = chunks * latency.least_base_s + own_s[0]
    return own_s, base_shares_s, np.cumsum(iteration_s)


def _combine(
    by_limit: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prices by slot, and the weight of each limit in them over all slots."""
    prices = by_limit.sum(axis=0)
    total = prices.sum()
    if total <= 0:
        return prices, np.array([1.0, 0.0, 0.0])
    return prices, by_limit.sum(axis=1) / total


def _evaluate(
    problem: _Problem,
    work_s: NDArray[np.float64],
    prices: NDArray[np.float64],
    slot_s: float,
    cells: int,
) -> tuple[float, NDArray[np.float64]]:
    """The bound on the mean, and the profit of each request."""
    served = problem.served
    profit = np.zeros(problem.rejected.size)
    profit[~problem.rejected] = most_profits(
        served.arrival_s,
        served.ttft_s,
        served.tds,
        problem.offsets,
        work_s,
        problem.earliest_s,
        prices,
        slot_s,
        cells,
    )
    total = math.fsum(profit) + math.fsum(prices * slot_s)
    # Nobody scores above 1, whatever the prices.
    ceiling = int((~problem.rejected).sum())
    return min(total * (1 + _ROUNDING) + _ROUNDING, ceiling) / profit.size, profit


def _best_scale(
    problem: _Problem,
    work_s: NDArray[np.float64],
    prices: NDArray[np.float64],
    slot_s: float,
    deadline: float,
) -> float:
    """Golden-section search for the factor on the prices with the lowest bound."""
    if not prices.any():
        return 1.0

    def bound(scale: float) -> float:
        return _evaluate(problem, work_s, scale * prices, slot_s, _COARSE_CELLS)[0]

    golden = (math.sqrt(5) - 1) / 2
    low, high = 0.5, 1.5
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = bound(left), bound(right)
    for _ in range(_SEARCH_STEPS):
        if time.perf_counter() > deadline:
            break
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = bound(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = bound(right)
    scales = (0.0, left, right)
    bounds = (bound(0.0), at_left, at_right)
    return scales[int(np.argmin(bounds))]
