"""
The engine's latency, learnt while it serves.

Recursive least squares with exponential forgetting (Haykin, Adaptive Filter Theory, ch. 9) in
information form: the forgotten sums of x x^T and x y, and a fixed pull towards the seed
profile, which keeps coefficients that the traffic does not excite where the profile puts them.
Iterations with and without prefill have a base and a time per request of their own; none of the six
coefficients is negative (:mod:`andes_opt.calibration`).
"""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from andes_opt.compilation import jit
from andes_opt.latency import LatencyModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: From the six coefficients to those of a :class:`LatencyModel`, whose last two are differences.
_DIFFERENCES = np.eye(6) - np.eye(6, k=-4)


class LatencyLearner:
    """
    Fits a :class:`LatencyModel` to iterations as they are timed.

    Parameters
    ----------
    seed
        The profile to start from.
    memory_iterations
        Iterations after which a sample counts 1/e, > 1.
    seed_weight
        Iterations' worth of trust in the seed, per coefficient, > 0.
    learn
        If False the seed is used as it is.

    Raises
    ------
    ValueError
        If an option is out of range.

    Attributes
    ----------
    samples, rejected
        Iterations learnt from, and outliers left out.
    """

    def __init__(
        self,
        seed: LatencyModel,
        *,
        memory_iterations: float = 2000.0,
        seed_weight: float = 1.0,
        learn: bool = True,
    ) -> None:
        if not (math.isfinite(memory_iterations) and memory_iterations > 1):
            raise ValueError(f"memory_iterations = {memory_iterations} not understood: need > 1.")
        if not (math.isfinite(seed_weight) and seed_weight > 0):
            raise ValueError(f"seed_weight = {seed_weight} not understood: need > 0.")
        self._learn = learn
        self._forget = math.exp(-1.0 / memory_iterations)
        self._seed = np.array(astuple(seed))
        # Columns in units of a typical iteration, so that one weight fits all.
        self._scale = np.array([1.0, 16.0, 8000.0, 256.0, 1.0, 16.0])
        self._pull = seed_weight
        self._outer = np.zeros((6, 6))
        self._cross = np.zeros(6)
        self._count = 0.0  # iterations, the forgotten ones less
        self._model = seed
        self._fresh = True
        self.samples = 0
        self.rejected = 0
        self._in_a_row = 0  # rejected

    def observe(self, duration_s: float, batch: int, context: int, prefill: int) -> None:
        """
        Learn from one iteration.

        Parameters
        ----------
        duration_s
            How long it took; ignored unless finite and > 0. Once ten samples are in, so is an
            iteration that took ten times what the model says (the process was stopped, say);
            after twenty of these in a row everything is learnt afresh.
        batch, context, prefill
            Requests that decoded, their KV tokens, and prompt tokens computed.
        """
        if not self._learn or not (math.isfinite(duration_s) and duration_s > 0):
            return
        if self._is_outlier(duration_s, batch, context, prefill):
            self.rejected += 1
            self._in_a_row += 1
            if self._in_a_row == 20:
                self._outer[:], self._cross[:], self._count = 0.0, 0.0, 0.0
                self._in_a_row = self.samples = 0
            return
        self._in_a_row = 0
        mixed = prefill > 0
        own = (0.0, 0.0, context, prefill, 1.0, batch) if mixed else (1.0, batch, context, 0, 0, 0)
        features = np.array(own) / self._scale
        # Relative errors count, so that a few long prefills do not drown the decodes.
        _accumulate(self._outer, self._cross, features, duration_s, self._forget)
        self._count = self._forget * self._count + 1.0
        self.samples += 1
        self._fresh = False

    def _is_outlier(self, duration_s: float, batch: int, context: int, prefill: int) -> bool:
        if self.samples < 10:
            return False
        # First by the model of the last plan; it is solved for again only in the rare case.
        return duration_s > 10.0 * self._model.iteration_s(
            batch, context, prefill
        ) and duration_s > 10.0 * self.model.iteration_s(batch, context, prefill)

    @property
    def model(self) -> LatencyModel:
        """The model that fits what was seen; the seed before anything was."""
        if not self._fresh:
            scaled = _solve_non_negative(
                self._outer, self._cross, self._count, self._seed * self._scale, self._pull
            )
            coefficients = scaled / self._scale
            coefficients[[0, 4]] = np.maximum(coefficients[[0, 4]], 1e-6)  # seconds of a base
            if np.isfinite(coefficients).all():
                coefficients[4:] -= coefficients[:2]
                self._model = LatencyModel(*coefficients.tolist())
            self._fresh = True
        return self._model


@jit
def _accumulate(
    outer: NDArray[np.float64],
    cross: NDArray[np.float64],
    features: NDArray[np.float64],
    duration_s: float,
    forget: float,
) -> None:
    weight = 1.0 / (duration_s * duration_s)
    for i in range(features.size):
        cross[i] = forget * cross[i] + weight * features[i] * duration_s
        for j in range(features.size):
            outer[i, j] = forget * outer[i, j] + weight * features[i] * features[j]


def _solve_non_negative(
    outer: NDArray[np.float64],
    cross: NDArray[np.float64],
    count: float,
    seed: NDArray[np.float64],
    pull: float,
) -> NDArray[np.float64]:
    """Least squares and the pull to the seed, as a non-negative least-squares problem."""
    # One of these two features is 1, so this is `pull` iterations of average weight.
    strength = pull * (outer[0, 0] + outer[4, 4]) / count
    # What prefill adds is pulled to what it adds in the seed, not to the seed's own times: before
    # any prompt has come, an engine that is slower than the seed is slower with prompts, too.
    root = np.linalg.cholesky(outer + strength * _DIFFERENCES.T @ _DIFFERENCES)
    target = solve_triangular(root, cross + strength * _DIFFERENCES.T @ seed, lower=True)
    solution: NDArray[np.float64] = nnls(root.T, target)[0]
    return solution
