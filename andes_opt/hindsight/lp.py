"""
Prices of engine time for the hindsight bound, from a linear program solved by HiGHS.

The program is the fluid version of the scheduling problem: in each time slot the engine
has ``slot_s`` seconds, requests take shares of their replies from it, and readers digest
what they have. Its dual variables say what a second of engine time is worth in each slot.
They need not be exact: :mod:`andes_opt.hindsight` derives a valid bound from any prices, and a
tight one from good prices.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.workload import Requests

#: Pieces into which a reply is cut; within a piece all tokens cost the same.
_PIECES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """
    HiGHS's answer.

    Parameters
    ----------
    by_limit
        Price of a second of engine time by slot, for each limit by which an iteration's base
        time can be divided, (limits, slots), >= 0. All 0 if HiGHS found none.
    value
        The program's optimum, summed over requests, as HiGHS states it; NaN if it found none.
    """

    by_limit: NDArray[np.float64]
    value: float


def fluid_prices(
    requests: Requests,
    offsets: NDArray[np.int64],
    work_s: NDArray[np.float64],
    slots: int,
    slot_s: float,
    time_limit_s: float | None,
) -> Prices:
    """
    Solve the fluid program.

    Request i has, in each slot t between its arrival and the end of its window, the share
    ``y_itg`` of piece g of its reply that is generated, the share ``a_it`` of its reply that is
    digested and the backlog ``b_it``:

        maximise   sum value_it a_it
        subject to sum_ig work_igr y_itg <= slot_s             for each slot t and limit r
                   b_it = b_i,t-1 + sum_g share_g y_itg - a_it
                   sum_t y_itg <= 1,  0 <= a_it <= tds * (seconds of the window in t) / n

    Columns are shares of a reply and rows of capacity shares of a slot, so that all
    coefficients lie within a few orders of magnitude of 1.

    Parameters
    ----------
    requests
        The requests that can be served.
    offsets
        Request i's tokens are ``offsets[i]`` to ``offsets[i + 1]`` of ``work_s``, (n + 1,).
    work_s
        Engine time of each token under each limit, (limits, tokens).
    slots, slot_s
        Number and seconds of the slots, the first of which starts at 0.
    time_limit_s
        Limit for HiGHS.
    """
    limits = work_s.shape[0]
    window_end_s = requests.arrival_s + requests.ttft_s + requests.output_tokens / requests.tds
    capacity, balance, once = _Rows(), _Rows(), _Rows()
    values: list[NDArray[np.float64]] = []
    uppers: list[NDArray[np.float64]] = []
    variables = 0

    for i in range(requests.num_requests):
        n, tds = int(requests.output_tokens[i]), float(requests.tds[i])
        first = int(requests.arrival_s[i] / slot_s)
        last = min(slots - 1, int(window_end_s[i] / slot_s))
        t = np.arange(first, last + 1)
        starts_s = np.maximum(t * slot_s, requests.arrival_s[i] + requests.ttft_s[i])
        ends_s = np.minimum((t + 1) * slot_s, window_end_s[i])
        open_s = np.maximum(0.0, ends_s - starts_s)

        # Every token digested earns 2 tds / n^2 per second until the window ends.
        digested = variables + np.arange(t.size)
        backlog = digested + t.size
        variables += 2 * t.size
        left_s = np.maximum(0.0, window_end_s[i] - 0.5 * (starts_s + ends_s))
        values += [np.where(open_s > 0, 2 * tds / n * left_s, 0.0), np.zeros(t.size)]
        uppers += [tds * open_s / n, np.ones(t.size)]
        row = balance.more(t.size)
        balance.put(row, digested, -1.0)
        balance.put(row, backlog, -1.0)
        balance.put(row[1:], backlog[:-1], 1.0)

        cuts = np.unique(np.linspace(0, n, _PIECES + 1).astype(np.int64))
        for start, end in itertools.pairwise(cuts.tolist()):
            made = variables + np.arange(t.size)
            variables += t.size
            values.append(np.zeros(t.size))
            uppers.append(np.ones(t.size))
            balance.put(row, made, (end - start) / n)
            piece_s = work_s[:, offsets[i] + start : offsets[i] + end].sum(axis=1)
            for limit in range(limits):
                capacity.put(limit * slots + t, made, piece_s[limit] / slot_s)
            once.put(np.full(t.size, once.more(1)[0]), made, 1.0)

    capacity.count = limits * slots
    upper_rows = np.ones(capacity.count + once.count)
    result = linprog(  # type: ignore[call-overload]  # the stubs know no sparse matrices
        -np.concatenate(values),
        A_ub=_Rows.stack(capacity, once, variables),
        b_ub=upper_rows,
        A_eq=balance.matrix(variables),
        b_eq=np.zeros(balance.count),
        bounds=np.column_stack([np.zeros(variables), np.concatenate(uppers)]),
        method="highs-ds",
        options={"time_limit": math.inf if time_limit_s is None else time_limit_s},
    )
    if result.status != 0:
        return Prices(np.zeros((limits, slots)), float("nan"))
    marginals = -np.asarray(result.ineqlin.marginals)[: capacity.count] / slot_s
    # Projection on the dual's only sign constraint; the rest of the dual is never used.
    return Prices(np.maximum(0.0, marginals).reshape(limits, slots), -float(result.fun))


class _Rows:
    """Collects the entries of a sparse matrix row by row."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[NDArray[np.int64]] = []
        self._columns: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []

    def more(self, count: int) -> NDArray[np.int64]:
        """Numbers of ``count`` new rows."""
        rows = self.count + np.arange(count)
        self.count += count
        return rows

    def put(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], value: float | np.float64
    ) -> None:
        """The same coefficient at each of the places."""
        self._rows.append(rows)
        self._columns.append(columns)
        self._values.append(np.full(rows.size, float(value)))

    def matrix(self, columns: int) -> csr_matrix:
        """Return the rows as a matrix."""
        entries = (
            np.concatenate(self._values),
            (np.concatenate(self._rows), np.concatenate(self._columns)),
        )
        return csr_matrix(entries, shape=(self.count, columns))

    @staticmethod
    def stack(above: _Rows, below: _Rows, columns: int) -> csr_matrix:
        """One set of rows above another."""
        both = _Rows()
        both.count = above.count + below.count
        both._rows = above._rows + [rows + above.count for rows in below._rows]
        both._columns = above._columns + below._columns
        both._values = above._values + below._values
        return both.matrix(columns)
