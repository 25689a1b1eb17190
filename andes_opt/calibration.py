"""
From measured iterations to a :class:`~andes_opt.latency.LatencyModel`.

The model is linear in what an iteration computes, so its coefficients are a least-squares problem.
Iterations with prefill have a base and a time per request of their own, those without it have
theirs, and all share the times per context and prefill token: six coefficients, none of which may
be negative (Lawson and Hanson, Solving Least Squares Problems, ch. 23). The differences of the
former are the model's ``mixed_`` terms, which may. The measurements tell the coefficients apart
only if batch, context and prefill vary independently of one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from andes_opt.files import csv_rows
from andes_opt.latency import LatencyModel

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: Columns that a file of measured iterations needs, in any order.
COLUMNS = ("batch", "context_tokens", "prefill_tokens", "seconds")

WEIGHTINGS = ("absolute", "relative")

#: Names of the model's coefficients, in the order of :data:`COLUMNS` after the constant.
COEFFICIENTS = tuple(item.name for item in fields(LatencyModel))

_LEAST_ROWS = 5
#: Least iterations with prefill, and without, from which the ``mixed_`` terms are fitted.
_LEAST_OF_A_KIND = 4
#: The terms that iterations with prefill add, and what they are added to.
_MIXED = {"mixed_base_s": "base_s", "mixed_per_request_s": "per_request_s"}


@dataclass(frozen=True, slots=True, eq=False)
class Iterations:
    """
    Measured engine iterations; arrays are (n,).

    Parameters
    ----------
    batch
        Requests that decoded a token.
    context_tokens
        KV tokens that these attended to, in total.
    prefill_tokens
        Prompt tokens computed beside them.
    seconds
        Duration of the iteration.

    Raises
    ------
    ValueError
        If arrays differ in length, a count is negative or not finite, or a time is not
        a number > 0.
    """

    batch: NDArray[np.float64]
    context_tokens: NDArray[np.float64]
    prefill_tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        size = np.size(self.batch)
        for name in COLUMNS:
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (size,):
                raise ValueError(f"{name} has shape {values.shape}, batch ({size},).")
            good = np.isfinite(values) & ((values > 0) if name == "seconds" else (values >= 0))
            if not good.all():
                row = int(np.flatnonzero(~good)[0])
                need = "a number > 0" if name == "seconds" else "a number >= 0"
                raise ValueError(f"{name} of row {row + 1} is {values[row]}: need {need}.")
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def count(self) -> int:
        """Number of iterations n."""
        return int(self.seconds.size)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """
    A latency model and how well it describes what was measured.

    Parameters
    ----------
    latency
        The model.
    fitted_s
        Time that the model gives each iteration, (n,).
    residual_s
        Measured minus fitted time, (n,).
    standard_error
        Standard error of each coefficient by name, as if there were no bounds; NaN for a
        coefficient that was not fitted or lies at its bound of 0.
    undetermined
        Coefficients left at 0 because what they multiply was 0 in every iteration; the ``mixed_``
        terms, if iterations with prefill were measured, but can't tell them apart.
    r2
        Share of the variance of the times that the model explains; NaN if all are equal.
    """

    latency: LatencyModel
    fitted_s: NDArray[np.float64]
    residual_s: NDArray[np.float64]
    standard_error: dict[str, float]
    undetermined: tuple[str, ...]
    r2: float

    def summary(self) -> dict[str, float]:
        """
        Flat numbers: coefficients, standard errors, R2 and residuals.

        Returns
        -------
        dict[str, float]
            ``r2``; ``residual_rms_s``, ``residual_max_s`` (largest in size);
            ``relative_error_mean``, ``relative_error_p95`` and ``relative_error_max``,
            residuals in size over the measured time; each coefficient under its name, and
            its standard error as ``NAME_se``.
        """
        size_s = np.abs(self.residual_s)
        relative = size_s / (self.fitted_s + self.residual_s)
        numbers = {
            "iterations": float(size_s.size),
            "r2": self.r2,
            "residual_rms_s": float(np.sqrt((self.residual_s**2).mean())),
            "residual_max_s": float(size_s.max()),
            "relative_error_mean": float(relative.mean()),
            "relative_error_p95": float(np.percentile(relative, 95)),
            "relative_error_max": float(relative.max()),
        }
        for name in COEFFICIENTS:
            numbers[name] = getattr(self.latency, name)
            numbers[f"{name}_se"] = self.standard_error[name]
        return numbers


def read_iterations(path: Path) -> Iterations:
    """
    Read measured iterations from a CSV file with the columns :data:`COLUMNS`.

    Parameters
    ----------
    path
        The file, as :func:`andes_opt.files.csv_rows` reads it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing or an entry is no number in range; the sentence names file,
        line and column.
    """
    values: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for place, row in csv_rows(path, COLUMNS, what="file of iterations"):
        for name, text in zip(COLUMNS, row, strict=True):
            values[name].append(_number(text, f"{place}: {name}", name == "seconds"))
    return Iterations(**{name: np.array(column) for name, column in values.items()})


def fit_latency(iterations: Iterations, *, weighting: str = "absolute", mixed: bool = True) -> Fit:
    """
    Fit the latency model to measured iterations by non-negative least squares.

    Parameters
    ----------
    iterations
        What was measured, at least five iterations.
    weighting
        ``"absolute"`` minimises the squared residuals in seconds, which long prefills
        dominate; ``"relative"`` divides each by the measured time.
    mixed
        Whether to fit what decoding beside a prompt takes more (``mixed_base_s`` and
        ``mixed_per_request_s``), where there are iterations of both kinds to tell.

    Raises
    ------
    ValueError
        If there are too few iterations, the weighting is unknown, what was measured can't
        tell the coefficients apart, or the best fit has no base time.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting = {weighting!r} not understood: need one of {', '.join(WEIGHTINGS)}."
        )
    if iterations.count < _LEAST_ROWS:
        raise ValueError(
            f"{iterations.count} iterations can't be fitted: need at least {_LEAST_ROWS}."
        )
    seconds = iterations.seconds
    weights = 1 / seconds if weighting == "relative" else np.ones(iterations.count)
    solved = _solve_split(iterations, weights) if mixed else None
    split = solved is not None
    if solved is None:
        solved = _solve(_features(iterations), seconds, weights)

    values = dict(zip(COEFFICIENTS, solved.values.tolist(), strict=False))
    if values["base_s"] == 0:
        raise ValueError(
            "the best fit has base_s = 0: measure small batches too, which show what an "
            "iteration takes whatever it holds."
        )
    unused = [COEFFICIENTS[k] for k in np.flatnonzero(~solved.used)]
    if mixed and not split and iterations.prefill_tokens.any():
        unused += _MIXED
    if split:
        values |= {name: values[name] - values[of] for name, of in _MIXED.items()}
    residual_s = seconds - solved.fitted_s
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    return Fit(
        latency=LatencyModel(**values),
        fitted_s=solved.fitted_s,
        residual_s=residual_s,
        standard_error=_standard_errors(solved.covariance(residual_s * weights)),
        undetermined=tuple(unused),
        r2=1 - float((residual_s**2).sum()) / spread if spread > 0 else math.nan,
    )


def _features(iterations: Iterations) -> NDArray[np.float64]:
    """What the coefficients of the model without ``mixed_`` terms multiply, (n, 4)."""
    return np.column_stack(
        [
            np.ones(iterations.count),
            iterations.batch,
            iterations.context_tokens,
            iterations.prefill_tokens,
        ]
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """
    A fit without negative values.

    ``matrix`` (n, m) holds the weighted columns that are used, divided by ``scale`` (m,);
    ``values`` and ``used`` are (k,), for all columns.
    """

    matrix: NDArray[np.float64]
    scale: NDArray[np.float64]
    values: NDArray[np.float64]
    used: NDArray[np.bool_]
    fitted_s: NDArray[np.float64]

    def covariance(self, residual: NDArray[np.float64]) -> NDArray[np.float64]:
        """(k, k), by ordinary least squares on the values above 0 alone; NaN for the others."""
        whole = np.full((self.values.size, self.values.size), math.nan)
        free = self.values[self.used] > 0
        freedom = self.matrix.shape[0] - int(free.sum())
        if freedom < 1:
            return whole
        part = self.matrix[:, free]
        scale = self.scale[free]
        covariance = np.linalg.inv(part.T @ part) * float((residual**2).sum()) / freedom
        kept = np.flatnonzero(self.used)[free]
        whole[np.ix_(kept, kept)] = covariance / np.outer(scale, scale)
        return whole


def _solve(
    features: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]
) -> _Solved:
    """Non-negative least squares; ValueError if some columns are combinations of the others."""
    # Columns of one size: a context is thousands of tokens where a batch is tens of requests.
    scale = np.linalg.norm(features, axis=0)
    used = scale > 0
    matrix = (features[:, used] / scale[used]) * weights[:, None]
    _check_rank(matrix, [COEFFICIENTS[k] for k in np.flatnonzero(used)])
    values = np.zeros(scale.size)
    values[used] = nnls(matrix, seconds * weights)[0] / scale[used]
    return _Solved(matrix, scale[used], values, used, features @ values)


def _solve_split(iterations: Iterations, weights: NDArray[np.float64]) -> _Solved | None:
    """A fit with a base and a time per request for either kind of iteration; None if it fails."""
    prefill = iterations.prefill_tokens > 0
    if min(prefill.sum(), (~prefill).sum()) < _LEAST_OF_A_KIND:
        return None
    features = _features(iterations)
    own = features[:, :2]
    features = np.column_stack([own * ~prefill[:, None], features[:, 2:], own * prefill[:, None]])
    if not (features[:, [1, 5]] > 0).any(axis=0).all():
        return None  # one kind has no batch
    try:
        solved = _solve(features, iterations.seconds, weights)
    except ValueError:
        return None
    base_s, mixed_base_s = solved.values[0], solved.values[4]
    return solved if mixed_base_s > 1e-6 * base_s > 0 else None


def _number(text: str, where: str, positive: bool) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        need = "a number > 0" if positive else "a number >= 0"
        raise ValueError(f"{where} = {text!r} not understood: need {need}.")
    return value


def _check_rank(matrix: NDArray[np.float64], names: list[str]) -> None:
    """Refuse measurements in which some columns are combinations of the others."""
    _, sizes, directions = np.linalg.svd(matrix, full_matrices=False)
    if sizes[-1] > 1e-10 * sizes[0]:
        return
    confused = [name for name, part in zip(names, directions[-1], strict=True) if abs(part) > 1e-3]
    raise ValueError(
        f"these iterations can't tell {' from '.join(confused)}: vary what they multiply "
        "independently."
    )


def _standard_errors(covariance: NDArray[np.float64]) -> dict[str, float]:
    """Standard errors by name, of the ``mixed_`` terms as differences."""
    errors = dict.fromkeys(COEFFICIENTS, math.nan)
    for k, name in enumerate(COEFFICIENTS[: covariance.shape[0]]):
        variance = covariance[k, k]
        if name in _MIXED:
            of = COEFFICIENTS.index(_MIXED[name])
            variance += covariance[of, of] - 2 * covariance[k, of]
        errors[name] = float(np.sqrt(variance))
    return errors
