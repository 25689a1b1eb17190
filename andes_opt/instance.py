"""
One scheduling step as a knapsack: the instance, its gain model, and .npz files.

The step (docs/model.md, The scheduling step; Andes, arXiv 2404.16283, section 4) is

    maximise over B in [min_batch, max_batch] and x in {0, 1}^n
        sum_i gain_i(B) x_i
    subject to
        sum_i weights_i x_i <= capacity,    sum_i x_i <= B   (or == B).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from andes_opt.checks import whole
from andes_opt.files import written_whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: Most that weights may sum to: compiled code adds them up as int64.
_MOST_TOKENS = 2**62

_NPZ_KEYS = ("weights", "capacity", "min_batch", "max_batch", "exactly", "values", "first_batch")


@runtime_checkable
class GainModel(Protocol):
    """
    What each request gains by being served, as a function of the batch size.

    Attributes
    ----------
    monotone
        True if no gain rises when the batch size rises. Solvers may then bound a
        whole range of batch sizes by the gains of its smallest.
    concave_in_rate
        True if every gain is a concave function of the token rate 1/latency(B).
    """

    @property
    def monotone(self) -> bool: ...

    @property
    def concave_in_rate(self) -> bool: ...

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        """Gains (n,) of every request when the batch holds ``batch_size`` requests."""
        ...

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        """Gains (last - first + 1, n) for the batch sizes ``first`` to ``last``, both included."""
        ...


class GainTable:
    """
    Gains given as numbers: row r holds the gains at batch size ``first_batch + r``.

    Parameters
    ----------
    values
        Gains, (k, n), finite.
    first_batch
        Batch size of the first row, >= 0.
    concave_in_rate
        Whether the gains are concave in the token rate, which the numbers do not show.

    Raises
    ------
    ValueError
        If the values are not a finite (k, n) table with k >= 1, or first_batch is no whole
        number >= 0.
    """

    __slots__ = ("concave_in_rate", "first_batch", "monotone", "values")

    def __init__(
        self, values: ArrayLike, first_batch: int = 0, *, concave_in_rate: bool = False
    ) -> None:
        try:
            table = np.array(values, dtype=np.float64, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"gain values not understood: need (k, n) numbers; {error}."
            ) from error
        if table.ndim != 2 or table.shape[0] == 0:
            raise ValueError(
                f"gain values of shape {table.shape} not understood: need (k >= 1, n)."
            )
        if not np.isfinite(table).all():
            raise ValueError("gain values must be finite; found NaN or infinity.")
        whole("first_batch", first_batch, 0)

        table.flags.writeable = False
        self.values: NDArray[np.float64] = table
        self.first_batch = int(first_batch)
        self.monotone = bool((table[1:] <= table[:-1]).all())
        self.concave_in_rate = concave_in_rate

    @property
    def last_batch(self) -> int:
        """Batch size of the last row."""
        return self.first_batch + self.values.shape[0] - 1

    def __call__(self, batch_size: int) -> NDArray[np.float64]:
        """Gains (n,) at ``batch_size``; IndexError if the table has no such row."""
        return self.table(batch_size, batch_size)[0]

    def table(self, first: int, last: int) -> NDArray[np.float64]:
        """Gains (last - first + 1, n), a read-only view; IndexError outside the table."""
        if not self.first_batch <= first <= last <= self.last_batch:
            raise IndexError(
                f"batch sizes {first} to {last} are outside the table's "
                f"{self.first_batch} to {self.last_batch}."
            )
        return self.values[first - self.first_batch : last - self.first_batch + 1]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """
    One scheduling step, ready for a solver.

    Parameters
    ----------
    weights
        KV tokens each request holds while it is served, (n,), integers >= 1.
    capacity
        KV tokens there are, >= 0.
    min_batch, max_batch
        Range of batch sizes, 0 <= min_batch <= max_batch; max_batch may exceed n.
    gains
        The gain model.
    exactly
        If True a plan serves exactly ``batch_size`` requests, else at most that many.

    Raises
    ------
    ValueError
        On a wrong shape, a weight < 1, a bad range, no gain model, or a gain table that
        does not cover [min_batch, max_batch] and n.
    """

    weights: NDArray[np.int64]
    capacity: int
    min_batch: int
    max_batch: int
    gains: GainModel
    exactly: bool = False

    def __post_init__(self) -> None:
        raw = np.asarray(self.weights)
        if raw.ndim != 1:
            raise ValueError(f"weights of shape {raw.shape} not understood: need (n,).")
        if raw.size and raw.dtype.kind not in "iu":
            raise ValueError(f"weights must be integers, not {raw.dtype}.")
        if raw.size and raw.min() < 1:
            raise ValueError(f"weights must be >= 1; the smallest is {raw.min()}.")
        if raw.size and raw.max() > _MOST_TOKENS // raw.size:
            raise ValueError(f"weights must sum to 2**62 at most; the largest is {raw.max()}.")
        weights = np.array(raw, dtype=np.int64)
        for name in ("capacity", "min_batch", "max_batch"):
            whole(name, getattr(self, name), 0)
        if self.min_batch > self.max_batch:
            raise ValueError(
                f"batch range [{self.min_batch}, {self.max_batch}] not understood: "
                "need 0 <= min_batch <= max_batch."
            )

        gains = self.gains
        if not callable(gains):
            raise ValueError(
                f"gains of type {type(gains).__name__} not understood: need a gain model, "
                "GainTable(values, first_batch) say."
            )
        if isinstance(gains, GainTable):
            if gains.values.shape[1] != weights.size:
                raise ValueError(
                    f"the gain table has {gains.values.shape[1]} columns "
                    f"for {weights.size} requests."
                )
            if gains.first_batch > self.min_batch or gains.last_batch < self.max_batch:
                raise ValueError(
                    f"the gain table covers batch sizes {gains.first_batch} to "
                    f"{gains.last_batch}, not {self.min_batch} to {self.max_batch}."
                )

        weights.setflags(write=False)
        object.__setattr__(self, "weights", weights)
        # More capacity than all weights together need is no use, and might not fit an int64.
        object.__setattr__(self, "capacity", min(int(self.capacity), _MOST_TOKENS))
        object.__setattr__(self, "min_batch", int(self.min_batch))
        object.__setattr__(self, "max_batch", int(self.max_batch))
        object.__setattr__(self, "exactly", bool(self.exactly))

    @property
    def num_requests(self) -> int:
        """Number of requests n."""
        return int(self.weights.size)

    def gains_at(self, batch_size: int) -> NDArray[np.float64]:
        """
        The gain model's answer for one batch size, checked.

        Raises
        ------
        ValueError
            If the model returns another shape than (n,), NaN or infinity.
        """
        gains = np.asarray(self.gains(batch_size), dtype=np.float64)
        if not isinstance(self.gains, GainTable):
            _check_gains(gains, (self.num_requests,), f"at batch size {batch_size}")
        return gains

    def gain_table(self, first: int, last: int) -> NDArray[np.float64]:
        """
        The gain model's answer for a range of batch sizes, checked.

        Raises
        ------
        ValueError
            If the model returns another shape than (last - first + 1, n), NaN or infinity.
        """
        gains = np.asarray(self.gains.table(first, last), dtype=np.float64)
        if not isinstance(self.gains, GainTable):
            shape = (last - first + 1, self.num_requests)
            _check_gains(gains, shape, f"for batch sizes {first} to {last}")
        return gains

    def save(self, path: str | Path) -> None:
        """Write the instance to a compressed .npz file (keys in docs/model.md, Contracts)."""
        table = self.gain_table(self.min_batch, self.max_batch)
        with written_whole(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(
                file,
                weights=self.weights,
                capacity=self.capacity,
                min_batch=self.min_batch,
                max_batch=self.max_batch,
                exactly=self.exactly,
                values=table,
                first_batch=self.min_batch,
            )

    @classmethod
    def load(cls, path: str | Path) -> Instance:
        """
        Read an instance from an .npz file.

        Raises
        ------
        ValueError
            If the file is no .npz, lacks a key, or holds no valid instance; the
            sentence names the file.
        """
        try:
            if Path(path).is_file() and not zipfile.is_zipfile(path):
                raise ValueError("it is no .npz file.")
            with np.load(path, allow_pickle=False) as data:
                missing = [key for key in _NPZ_KEYS if key not in data]
                if missing:
                    raise ValueError(f"it lacks {', '.join(missing)}.")
                return cls(
                    weights=data["weights"],
                    capacity=data["capacity"].item(),
                    min_batch=data["min_batch"].item(),
                    max_batch=data["max_batch"].item(),
                    gains=GainTable(data["values"], data["first_batch"].item()),
                    exactly=bool(data["exactly"].item()),
                )
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} holds no instance: {error}") from error


def _check_gains(gains: NDArray[np.float64], shape: tuple[int, ...], where: str) -> None:
    if gains.shape != shape:
        raise ValueError(f"the gain model returned shape {gains.shape} {where}, not {shape}.")
    if not np.isfinite(gains).all():
        raise ValueError(f"the gain model returned NaN or infinity {where}.")
