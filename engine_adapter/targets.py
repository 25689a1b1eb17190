"""What a request's reader expects, as the request itself says it."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from andes_opt.qoe import QoETarget

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Targets beyond these bounds are nobody's: a day to the first token, a token in 11 days, or
#: faster than any engine. They also keep every forecast finite.
MAX_TTFT_S = 86_400.0
MIN_TDS = 1e-6
MAX_TDS = 1e6


def read_target(
    extra_args: Mapping[str, Any] | None, default: QoETarget
) -> tuple[QoETarget, str | None]:
    """
    The target in a request's ``extra_args`` (``vllm_xargs`` over HTTP).

    A request is never refused for its target: what can't be understood is replaced by the
    default, and said.

    Parameters
    ----------
    extra_args
        May hold ``ttft_s`` (seconds, 0 to a day) and ``tds`` (tokens/s, 1e-6 to 1e6).
    default
        Used for whatever is missing or absurd.

    Returns
    -------
    tuple[QoETarget, str | None]
        The target, and one sentence about what was replaced; None if nothing was.
    """
    if not extra_args or ("ttft_s" not in extra_args and "tds" not in extra_args):
        return default, None

    complaints = []
    ttft_s, tds = default.ttft_s, default.tds
    if "ttft_s" in extra_args:
        value = extra_args["ttft_s"]
        if _is_number(value) and 0 <= value <= MAX_TTFT_S:
            ttft_s = float(value)
        else:
            complaints.append(
                f"ttft_s = {value!r:.80} not understood: need seconds in [0, {MAX_TTFT_S:g}]."
            )
    if "tds" in extra_args:
        value = extra_args["tds"]
        if _is_number(value) and MIN_TDS <= value <= MAX_TDS:
            tds = float(value)
        else:
            complaints.append(
                f"tds = {value!r:.80} not understood: need tokens/s in [{MIN_TDS:g}, {MAX_TDS:g}]."
            )
    return QoETarget(ttft_s, tds), " ".join(complaints) or None


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False
