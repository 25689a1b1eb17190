"""How the exact solver's functions are compiled: each of them once, and no more than is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from andes_opt import compilation

if TYPE_CHECKING:
    from collections.abc import Callable

#: For functions that only compiled code calls.
inner = compilation.inner(error_model="numpy")

#: As `inner`, for sums whose order may change: their loops become SIMD code.
inner_sums = inner(fastmath={"reassoc", "nsz"})

#: For a piece of another function: Numba pastes it into its callers, which takes less time than
#: to link and optimise a large function again with each function that calls it.
part = compilation.jit(inline="always")

#: For a literal that is an argument, or the start of a counter that becomes one: for each
#: value of a literal Numba compiles the called function again.
as_int = cast("Callable[[int], int]", np.int64)
as_bool = cast("Callable[[bool], bool]", np.bool_)


def _uncounted(typing_context: Any, array: Any) -> Any:
    """Numba's code for an array without its count of references."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(array)(context, builder, arguments[0])
        struct.meminfo = cgutils.get_null_value(struct.meminfo.type)
        struct.parent = cgutils.get_null_value(struct.parent.type)
        return struct._getvalue()  # noqa: SLF001

    return array(array), generate


#: The same array without a count of references to it, for arrays that the Python caller keeps
#: until the compiled code returns. To count each mention of an array takes a quarter of the
#: time of a solve with a hundred requests.
uncounted = cast("Callable[[Any], Any]", intrinsic(_uncounted))
