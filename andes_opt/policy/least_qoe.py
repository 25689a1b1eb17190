"""Least QoE first: serve the readers with the lowest QoE so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from andes_opt import checks
from andes_opt.policy.packing import serve_in_order
from andes_opt.qoe import ideal_area

if TYPE_CHECKING:
    from andes_opt.snapshot import Decision, Snapshot


class LeastQoE:
    """
    Serve in order of the QoE that readers have had so far, the lowest first.

    QoE so far is the area digested over the area that an ideal reader would have digested
    by now (Andes, arXiv 2404.16283v1, section 3, with the reply's length unknown); before
    its first token is due a request has 1. This is the max-min rule without a forecast. It is
    fair, but spends engine time on readers whose QoE can't be raised any more.

    Parameters
    ----------
    grain
        QoE is compared in whole multiples of this, in (0, 1], and a resident request goes
        before others of the same.

    Raises
    ------
    ValueError
        If the grain is out of range.
    """

    def __init__(self, grain: float = 0.01) -> None:
        checks.share("grain", grain)
        self._grain = grain

    def decide(self, snapshot: Snapshot) -> Decision:
        """Serve the longest prefix of the order that fits."""
        age_s = snapshot.time_s - snapshot.arrival_s
        columns = zip(age_s, snapshot.ttft_s, snapshot.tds, strict=True)
        ideal = np.array([ideal_area(age, ttft_s, tds) for age, ttft_s, tds in columns])
        qoe = np.divide(snapshot.area, ideal, out=np.ones_like(ideal), where=ideal > 0)
        absent = snapshot.kv_tokens == 0
        grains = np.floor(qoe / self._grain)
        return serve_in_order(snapshot, np.lexsort((snapshot.arrival_s, absent, grains)))

    def finished(self, request_id: int) -> None:
        """Nothing is kept."""
