"""A monotonic clock that compiled code can read, so that time limits hold inside it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from numba import types

from andes_opt.compilation import jit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# POSIX clock_gettime by name: unlike a ctypes pointer it survives in the compilation cache.
_CLOCK = int(getattr(time, "CLOCK_MONOTONIC", 1))
_INT32: Any = types.int32
_CLOCK_GETTIME: Any = types.ExternalFunction("clock_gettime", _INT32(_INT32, types.intp))

if sys.platform == "win32":  # pragma: no cover

    @jit
    def now_s(buffer: NDArray[np.int64]) -> float:
        """Not available: compiled code runs to its end before a time limit is noticed."""
        return 0.0

else:

    @jit
    def now_s(buffer: NDArray[np.int64]) -> float:
        """
        Seconds on the clock of :func:`time.monotonic`.

        Parameters
        ----------
        buffer
            Scratch, (2,): receives seconds and nanoseconds.
        """
        _CLOCK_GETTIME(_CLOCK, buffer.ctypes.data)
        return buffer[0] + 1e-9 * buffer[1]
