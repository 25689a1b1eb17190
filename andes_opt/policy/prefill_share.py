"""The share of an engine's time that goes into prompts, as far as snapshots show it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from andes_opt import checks
from andes_opt.compilation import jit
from andes_opt.latency import LatencyModel
from andes_opt.request_state import prompt_s
from andes_opt.snapshot import State

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from andes_opt.snapshot import Snapshot

#: No more of the time is believed to go into prompts.
_MOST = 0.9


class PrefillShare:
    """
    Measures what prompts take of the engine's time, and shows policies the latency that is left.

    A request is decoded at ``1 / latency(B)`` tokens/s only while no prompt is computed. From one
    snapshot to the next the ``restore_s`` of some requests falls, prompts to compute and KV to
    restore, by the seconds that the engine has spent on it. The share is the sum of these over the
    time that has passed, both with exponential forgetting. It is a forecast that the next seconds
    will be like the last ones, and knows nothing of the future.

    Parameters
    ----------
    memory_s
        Seconds after which what was seen counts 1/e, > 0.

    Raises
    ------
    ValueError
        If the memory is not a number > 0.
    """

    def __init__(self, memory_s: float = 10.0) -> None:
        checks.positive("memory_s", memory_s)
        self._memory_s = memory_s
        self._restoring_s = self._seen_s = 0.0
        self._last: Snapshot | None = None

    @property
    def share(self) -> float:
        """Share of the time that went into prompts and restoring, in [0, 0.9]; 0 at first."""
        if self._seen_s <= 0:
            return 0.0
        return min(_MOST, self._restoring_s / self._seen_s)

    def slowed(self, snapshot: Snapshot) -> Snapshot:
        """
        Look at a snapshot, and return it with the latency that decoding requests will see.

        Its times but those of prompts are longer by 1 / (1 - share): if a third of the time goes
        into prompts, an iteration that takes 60 ms without them gives a token in 90 ms.

        Parameters
        ----------
        snapshot
            The engine now; later than the last one.
        """
        self._observe(snapshot)
        share = self.share
        if share == 0.0:
            return snapshot
        latency, longer = snapshot.latency, 1.0 / (1.0 - share)
        return replace(
            snapshot,
            latency=LatencyModel(
                latency.base_s * longer,
                latency.per_request_s * longer,
                latency.per_context_token_s * longer,
                latency.per_prefill_token_s,
            ),
        )

    def _observe(self, snapshot: Snapshot) -> None:
        last, self._last = self._last, snapshot
        if last is None or last.num_requests == 0:
            return  # the engine may have been idle since
        elapsed_s = snapshot.time_s - last.time_s
        if elapsed_s <= 0:
            return
        latency = snapshot.latency
        restored_s = _restored_s(
            last.request_id,
            last.restore_s,
            last.state,
            snapshot.request_id,
            snapshot.restore_s,
            snapshot.state,
            snapshot.prompt_tokens,
            snapshot.token_budget,
            (latency.per_prefill_token_s, latency.mixed_base_s, latency.mixed_per_request_s),
        )
        kept = math.exp(-elapsed_s / self._memory_s)
        self._restoring_s = kept * self._restoring_s + min(restored_s, elapsed_s)
        self._seen_s = kept * self._seen_s + elapsed_s


@jit
def _restored_s(
    last_id: NDArray[np.int64],
    last_restore_s: NDArray[np.float64],
    last_state: NDArray[np.int8],
    request_id: NDArray[np.int64],
    restore_s: NDArray[np.float64],
    state: NDArray[np.int8],
    prompt_tokens: NDArray[np.int64],
    token_budget: int,
    prompt_costs_s: tuple[float, float, float],
) -> float:
    # Seconds of restoring that lie behind requests that now run, or ran and have left. Numbers of
    # requests rise in a snapshot. Those that still wait do not count: theirs falls only where the
    # latency model or the prefix cache is believed to be faster than before. Nor do those that
    # left out of the queue: most have been given up.
    running = 0
    for i in range(state.size):
        running += state[i] == State.RUNNING
    total_s = 0.0
    k = 0
    for i in range(request_id.size):
        while k < last_id.size and last_id[k] < request_id[i]:
            total_s += last_restore_s[k] if last_state[k] == State.RUNNING else 0.0
            k += 1
        known = k < last_id.size and last_id[k] == request_id[i]
        if state[i] == State.RUNNING or state[i] == State.HELD:
            before_s = (
                last_restore_s[k]
                if known
                else prompt_s(float(prompt_tokens[i]), token_budget, running, *prompt_costs_s)
            )
            total_s += max(0.0, before_s - restore_s[i])
        k += known
    while k < last_id.size:
        total_s += last_restore_s[k] if last_state[k] == State.RUNNING else 0.0
        k += 1
    return total_s
