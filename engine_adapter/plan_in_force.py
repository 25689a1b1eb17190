"""The decision that the engine is following, keyed by the engine's own request ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from andes_opt.snapshot import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from andes_opt.snapshot import Decision


@dataclass(slots=True, eq=False)
class PlanInForce:
    """
    Which requests are served, held and evicted until the next plan.

    Parameters
    ----------
    serve, hold, wait
        Ids of the requests with each action.
    rank
        Id to position in the plan's order, 0 the most urgent.
    newest
        Number of the latest arrival that the plan knows of.
    made_s
        When its snapshot was taken, on the engine's clock.
    late
        True if it comes from the background.
    size
        Requests that it served when it was made.
    """

    serve: set[str]
    hold: set[str]
    wait: set[str]
    rank: dict[str, int]
    newest: int
    made_s: float
    late: bool = False
    size: int = 0
    _spare: list[str] | None = None

    def next_spare(self) -> str | None:
        """
        Returns the most urgent request that has to wait, each once; None if there are no more.

        It takes a place that becomes free before the next plan.
        """
        if self._spare is None:
            self._spare = sorted(self.wait, key=self.rank.__getitem__, reverse=True)
        return self._spare.pop() if self._spare else None

    def spares(self) -> Iterator[str]:
        """Returns what :meth:`next_spare` would return, one after the other, and takes none."""
        key = self.next_spare()
        if key is not None:
            self.put_back(key)
        return reversed(self._spare or [])

    def put_back(self, key: str) -> None:
        """Undo :meth:`next_spare`."""
        assert self._spare is not None
        self._spare.append(key)


def plan_of(
    decision: Decision, keys: Sequence[str], newest: int, made_s: float, *, late: bool = False
) -> PlanInForce:
    """
    Returns a decision about a snapshot as a plan about requests.

    Parameters
    ----------
    decision
        A checked decision that is no pass-through.
    keys
        The engine's id of each request of the snapshot.
    newest, made_s, late
        As in :class:`PlanInForce`.
    """
    assert decision.action is not None
    by_action: dict[int, set[str]] = {int(action): set() for action in Action}
    for key, action in zip(keys, decision.action.tolist(), strict=True):
        by_action[action].add(key)
    return PlanInForce(
        serve=by_action[Action.SERVE],
        hold=by_action[Action.HOLD],
        wait=by_action[Action.WAIT],
        rank={keys[i]: place for place, i in enumerate(decision.order.tolist())},
        newest=newest,
        made_s=made_s,
        late=late,
        size=len(by_action[Action.SERVE]),
    )


def fit_to_now(
    plan: PlanInForce,
    resident: set[str],
    need_blocks: Callable[[str], int],
    capacity_blocks: int,
    headroom_blocks: int = 0,
    *,
    places: int,
) -> bool:
    """
    Make a plan of the past fit the requests as they are now.

    Requests that left are gone from it already. Residents have grown, and those that were admitted
    since stay. The least urgent newcomers are put back until the rest fits the KV cache and the
    batch.

    Parameters
    ----------
    plan
        The plan, changed in place.
    resident
        Ids of requests whose KV is on the GPU.
    need_blocks
        Id to blocks needed if served now.
    capacity_blocks
        Blocks for plans.
    headroom_blocks
        Blocks beyond them that residents may have grown into.
    places
        Places in the batch; residents on hold keep theirs.

    Returns
    -------
    bool
        False if even without newcomers it does not fit, or nobody would be served.
    """
    kept = resident - plan.wait
    free = capacity_blocks - sum(need_blocks(key) for key in kept)
    places -= len(kept)
    if free < -headroom_blocks or places < 0:
        return False
    for key in sorted(plan.serve - resident, key=plan.rank.__getitem__):
        need = need_blocks(key)
        if need > free or places <= 0:
            plan.serve.discard(key)
            plan.wait.add(key)
        else:
            free -= need
            places -= 1
    return bool(plan.serve or kept - plan.hold)
