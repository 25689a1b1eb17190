"""
Gain models that compiled code can evaluate: one function, one table of kinds.

A solver that examines hundreds of batch sizes per millisecond can't call back into
Python for each. So every gain model of the package is stated as three values, made once
per scheduling step, from which :func:`fill_gains` computes the gains at any batch size:

``kind``
    One of the constants below: which formula.
``params``
    (k, n) float64, C-contiguous, read-only: what does not depend on the batch size.
``scalars``
    (m,) float64, read-only: what does not depend on the request.

========== ========================================== ============================= =========
kind       gain of request i at batch size B          rows of params                scalars
========== ========================================== ============================= =========
TABLE      the number in row B - first_batch          one row a batch size          first_batch
CONSTANT   a_i                                        a                             none
FORECAST   f_i(r), forecast QoE gain at rate r        saturation, tds, slope, slack rate
THRESHOLD  a_i if r >= r_i, else 0                    a, r_i                        rate
COSTED     f_i(r) + C_i - k_i max(0, B - 1)           as FORECAST, then C, k        rate
========== ========================================== ============================= =========

Here ``r = 1 / latency(B)`` is the token rate (:func:`token_rate`) and *rate* stands for
its five scalars ``base_s, per_request_s, per_context_token_s, capacity_tokens,
mean_need_tokens``. The forecast's four rows are explained in :mod:`andes_opt.forecast`.

All arrays are read-only, so that compiled callers see one type only, for tables (passed without a
copy) as for forecasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from andes_opt.compilation import jit
from andes_opt.instance import GainModel, GainTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from andes_opt.latency import LatencyModel

TABLE = 0
CONSTANT = 1
FORECAST = 2
THRESHOLD = 3
COSTED = 4

#: Least rows of ``params`` and length of ``scalars``, by kind.
_ROWS = {TABLE: 1, CONSTANT: 1, FORECAST: 4, THRESHOLD: 2, COSTED: 6}
_SCALARS = {TABLE: 1, CONSTANT: 0, FORECAST: 5, THRESHOLD: 5, COSTED: 5}


class CompilableGains(GainModel, Protocol):
    """A gain model that states its own kind, params and scalars (see the module's table)."""

    @property
    def kind(self) -> int: ...

    @property
    def params(self) -> NDArray[np.float64]: ...

    @property
    def scalars(self) -> NDArray[np.float64]: ...


def rate_scalars(
    latency: LatencyModel, capacity_tokens: int, mean_need_tokens: float
) -> NDArray[np.float64]:
    """
    The scalars that :func:`token_rate` reads, (5,).

    Parameters
    ----------
    latency
        The engine's latency model.
    capacity_tokens
        KV tokens there are.
    mean_need_tokens
        Mean of the KV tokens that the requests hold if served.
    """
    return frozen(
        latency.base_s,
        latency.per_request_s,
        latency.per_context_token_s,
        capacity_tokens,
        mean_need_tokens,
    )


@jit
def token_rate(scalars: NDArray[np.float64], batch_size: int) -> float:
    """
    Tokens/s that each of ``batch_size`` requests receives (docs/model.md, The scheduling step).

    The context that a batch attends to is taken as min(capacity, B * mean need).

    Parameters
    ----------
    scalars
        The scalars of a kind that has a rate, (5,).
    batch_size
        Requests in the batch, >= 0.
    """
    context_tokens = min(scalars[3], batch_size * scalars[4])
    return 1.0 / (scalars[0] + scalars[1] * batch_size + scalars[2] * context_tokens)


@jit(error_model="numpy")
def fill_gains(
    kind: int,
    params: NDArray[np.float64],
    scalars: NDArray[np.float64],
    batch_size: int,
    out: NDArray[np.float64],
) -> None:
    """
    Write the gains of all requests at one batch size into ``out``.

    Parameters
    ----------
    kind, params, scalars
        The gain model, as :func:`compiled` gives it.
    batch_size
        Requests in the batch, >= 0.
    out
        Receives the gains, (n,).

    Raises
    ------
    ValueError
        If ``out`` is not (n,) or the kind is unknown.
    IndexError
        If a table has no row for the batch size.
    """
    n = params.shape[1]
    if out.size != n:
        raise ValueError("out does not have one entry per request.")

    if kind == TABLE:
        row = batch_size - int(scalars[0])
        if row < 0 or row >= params.shape[0]:
            raise IndexError("the gain table has no row for this batch size.")
        # A loop: the broadcasting assignment takes seconds to compile.
        for i in range(n):
            out[i] = params[row, i]
    elif kind == CONSTANT:
        for i in range(n):
            out[i] = params[0, i]
    elif kind == FORECAST:
        _fill_forecast(params, token_rate(scalars, batch_size), out)
    elif kind == THRESHOLD:
        rate = token_rate(scalars, batch_size)
        value, least_rate = params[0], params[1]
        for i in range(n):
            out[i] = value[i] if rate >= least_rate[i] else 0.0
    elif kind == COSTED:
        _fill_forecast(params, token_rate(scalars, batch_size), out)
        constant, slope = params[4], params[5]
        others = float(max(0, batch_size - 1))
        for i in range(n):
            out[i] += constant[i] - slope[i] * others
    else:
        raise ValueError("kind of gain model not understood.")


@jit(error_model="numpy")
def _fill_forecast(params: NDArray[np.float64], rate: float, out: NDArray[np.float64]) -> None:
    # gain = saturation - q (q / d) with d = tds - rate, q = max(0, d slope - slack); the
    # order of operations keeps q <= d slope, so that d -> 0 can't blow up rounding.
    # Selects instead of branches: the loop compiles to SIMD code.
    saturation, tds, slope, slack = params[0], params[1], params[2], params[3]
    for i in range(out.size):
        deficit = tds[i] - rate
        shortfall = deficit * slope[i] - slack[i]
        gain = saturation[i] - shortfall * (shortfall / deficit)
        gain = gain if gain > 0.0 else 0.0
        out[i] = gain if shortfall > 0.0 else saturation[i]


class FormulaGains:
    """
    A gain model stated as ``kind``, ``params`` and ``scalars``.

    Parameters
    ----------
    kind
        One of the module's kinds.
    params
        (k, n); copied only if they are not C-contiguous float64, and made read-only.
    scalars
        (m,), made read-only.
    monotone, concave_in_rate
        What holds for these gains (see :class:`~andes_opt.instance.GainModel`).

    Raises
    ------
    ValueError
        If the kind is unknown, or the arrays don't fit it.
    """

    __slots__ = ("concave_in_rate", "kind", "monotone", "params", "scalars")

    def __init__(
        self,
        kind: int,
        params: NDArray[np.float64],
        scalars: NDArray[np.float64],
        *,
        monotone: bool,
        concave_in_rate: bool,
    ) -> None:
        if kind not in _ROWS:
            raise ValueError(f"kind = {kind} not understood: need one of {sorted(_ROWS)}.")
        params = np.ascontiguousarray(params, dtype=np.float64)
        scalars = np.ascontiguousarray(scalars, dtype=np.float64)
        if params.ndim != 2 or params.shape[0] < _ROWS[kind]:
            raise ValueError(
                f"params of shape {params.shape} not understood: kind {kind} needs "
                f"({_ROWS[kind]}, n)."
            )
        if scalars.shape != (_SCALARS[kind],):
            raise ValueError(
                f"scalars of shape {scalars.shape} not understood: kind {kind} needs "
                f"({_SCALARS[kind]},)."
            )
        params.setflags(write=False)
        scalars.setflags(write=False)
        self.kind = kind
        self.params = params
        self.scalars = scalars
        self.monotone = monotone
        self.concave_in_rate = concave_in_rate

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        """Gains (n,) at ``batch_size``."""
        out = np.empty(self.params.shape[1])
        fill_gains(self.kind, self.params, self.scalars, batch_size, out)
        return out

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        """Gains (last - first + 1, n)."""
        return fill_table(self.kind, self.params, self.scalars, first, last)


def compiled(
    gains: GainModel, first: int, last: int
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """
    The ``(kind, params, scalars)`` of any gain model, for :func:`fill_gains`.

    A :class:`~andes_opt.instance.GainTable` is passed without a copy. A model that
    compiled code doesn't know is asked for its table once.

    Parameters
    ----------
    gains
        The gain model.
    first, last
        Batch sizes that will be asked for, both included.

    Raises
    ------
    ValueError
        If an unknown model returns a table of the wrong length, NaN or infinity.
    """
    if isinstance(gains, GainTable):
        return TABLE, gains.values, frozen(gains.first_batch)
    # By attributes: isinstance() with a protocol takes 40 us, longer than a small solve.
    if hasattr(gains, "kind") and hasattr(gains, "params") and hasattr(gains, "scalars"):
        formula = cast("CompilableGains", gains)
        return formula.kind, formula.params, formula.scalars
    table = GainTable(gains.table(first, last), first)
    if table.last_batch != last:
        raise ValueError(
            f"the gain model returned {table.values.shape[0]} rows for batch sizes "
            f"{first} to {last}."
        )
    return TABLE, table.values, frozen(first)


def frozen(*numbers: float) -> NDArray[np.float64]:
    """The numbers as a read-only float64 array, as ``scalars`` have to be."""
    array = np.array(numbers, dtype=np.float64)
    array.setflags(write=False)
    return array


@jit
def fill_table(
    kind: int,
    params: NDArray[np.float64],
    scalars: NDArray[np.float64],
    first: int,
    last: int,
) -> NDArray[np.float64]:
    """Gains (last - first + 1, n) by :func:`fill_gains`."""
    out = np.empty((last - first + 1, params.shape[1]))
    for row in range(out.shape[0]):
        fill_gains(kind, params, scalars, first + row, out[row])
    return out
