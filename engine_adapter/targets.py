"""The QoE target that a request brings along."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from andes_opt.qoe import QoETarget

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of each part of a target: unit, least and most. More than a day to the first token, or less than
#: a token in 11 days, is a mistake; the bounds keep every forecast finite.
BOUNDS = {"ttft_s": ("seconds", 0.0, 86_400.0), "tds": ("tokens/s", 1e-6, 1e6)}


def read_target(
    extra_args: Mapping[str, Any] | None, default: QoETarget
) -> tuple[QoETarget, str | None]:
    """
    Returns the target in a request's ``extra_args`` (``vllm_xargs`` over HTTP).

    A request is never refused for its target: the default replaces what is not understood.

    Parameters
    ----------
    extra_args
        May hold ``ttft_s`` (seconds, 0 to a day) and ``tds`` (tokens/s, 1e-6 to 1e6).
    default
        Replaces what is missing or out of bounds.

    Returns
    -------
    tuple[QoETarget, str | None]
        The target, and a sentence for each value that was not understood; None if there was none.
    """
    if not extra_args:
        return default, None
    values = {"ttft_s": default.ttft_s, "tds": default.tds}
    complaints = []
    for name, (unit, least, most) in BOUNDS.items():
        if name not in extra_args:
            continue
        value = extra_args[name]
        if _is_number(value) and least <= value <= most:
            values[name] = float(value)
        else:
            complaints.append(
                f"{name} = {value!r:.80} not understood: need {unit} in [{least:g}, {most:g}]."
            )
    return QoETarget(**values), " ".join(complaints) or None


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False
