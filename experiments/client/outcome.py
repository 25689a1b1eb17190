"""What came of a client's run: its tokens, what failed most often, and a sentence."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from experiments.client.log import ClientLog
    from experiments.client.measured import Measured


def token_rows(measured: Measured) -> pl.DataFrame:
    """One row per token: number of its request, seconds since that arrived."""
    request = np.repeat(np.arange(measured.arrival_s.size), measured.output_tokens)
    return pl.DataFrame({"request": request, "time_s": np.concatenate(measured.token_times_s)})


def nothing_completed(log: ClientLog) -> bool:
    """Whether a run has no single complete reply, which is no result."""
    return not any(reply.outcome == "completed" for reply in log.replies)


def most_common_error(measured: Measured) -> str:
    """What most of the requests that did not complete say; empty if all completed."""
    errors = Counter(error for error in measured.error if error)
    return errors.most_common(1)[0][0] if errors else ""


def sentence(values: dict[str, float], why: str = "") -> str:
    """
    A run's summary in a line or two.

    Parameters
    ----------
    values
        The summary.
    why
        Why most of the others did not complete.
    """
    ended = values["requests"] - values["rejected"] - values["unfinished"]
    text = (
        f"{ended:.0f} of {values['requests']:.0f} replies complete; "
        f"QoE area {values['qoe_area_mean']:.3f}, delay {values['qoe_delay_mean']:.3f}, "
        f"window {values['qoe_window_mean']:.3f}; TTFT p50 {values['ttft_p50_s']:.2f} s, "
        f"p90 {values['ttft_p90_s']:.2f} s; {values['tokens_per_s']:.1f} tokens/s; "
        f"the client sent {1e3 * values['send_lag_p99_s']:.1f} ms late (p99)."
    )
    broken = {
        "refused": values["rejected"],
        "failed": values["failed"],
        "timed out": values["timed_out"],
        "interrupted": values["interrupted"],
    }
    counts = [f"{count:.0f} {how}" for how, count in broken.items() if count]
    if not counts:
        return text
    return f"{text} {', '.join(counts)}{f'; most often: {why}' if why else '.'}"
