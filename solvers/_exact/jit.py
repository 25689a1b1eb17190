"""How the exact solver's functions are compiled: each of them once, and no more than is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from andes_opt.compilation import jit

if TYPE_CHECKING:
    from collections.abc import Callable

# Numba links all callees into their callers and optimises them there again, so what nobody
# uses (an entry from Python and one from C each) costs seconds.
_NO_ENTRIES: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

#: For functions that only compiled code calls.
inner = jit(error_model="numpy", **_NO_ENTRIES)

#: As `inner`, for sums whose order may change: their loops become SIMD code.
inner_sums = jit(error_model="numpy", fastmath={"reassoc", "nsz"}, **_NO_ENTRIES)

#: For a literal that is an argument, or the start of a counter that becomes one: for each
#: value of a literal Numba compiles the called function again.
as_int = cast("Callable[[int], int]", np.int64)
as_bool = cast("Callable[[bool], bool]", np.bool_)
