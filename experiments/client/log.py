"""The log of a client's run, reply by reply: what gets scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from experiments.configuration.errors import Terminated

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from andes_opt.workload import Requests


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REFUSED = "refused"  # the server answered with an error
    FAILED = "failed"  # no connection, broken off, or an error in the stream
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"  # by the user, who stopped the run


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """
    What came of one request.

    Parameters
    ----------
    outcome
        How it ended.
    error
        Why, if not completed; empty otherwise.
    sent_s
        When the client began to send it, on the run's clock; NaN if it never did.
    connect_s
        From then until it was on the wire: finding, reaching and greeting the server; NaN if it
        never was.
    token_times_s
        When each token came, on the run's clock, (n,).
    estimated
        Whether the times of tokens within the stream are estimates.
    events, malformed
        Events with tokens or text, and events that made no sense.
    prompt_tokens
        Length of the prompt as the server counted it, or None.
    """

    outcome: Outcome
    error: str
    sent_s: float
    connect_s: float
    token_times_s: NDArray[np.float64]
    estimated: bool
    events: int
    malformed: int
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ClientLog:
    """
    All that a run of the client saw.

    Parameters
    ----------
    requests
        The workload.
    replies
        Of the first requests, in order of arrival: all of them unless interrupted.
    loop_lag_s
        How late the event loop was, asked for every 10 ms of the run, (k,).
    in_flight_max
        Most requests that waited for their reply's end at once.
    wall_s, cpu_s
        Duration of the run, and the processor time that this process took for it.
    interrupted
        Whether the user stopped the run.
    server_gone
        Whether not all is complete and the server no longer answers.
    terminated
        Whether it was SIGTERM that stopped the run.
    """

    # Without repr: asyncio writes a task's result out when it puts back the signal handler.
    requests: Requests = field(repr=False)
    replies: tuple[Reply, ...] = field(repr=False)
    loop_lag_s: NDArray[np.float64] = field(repr=False)
    in_flight_max: int
    wall_s: float
    cpu_s: float
    interrupted: bool
    server_gone: bool
    terminated: bool = False

    def stop(self) -> None:
        """Raise what stopped the run, if anything did."""
        if self.interrupted:
            raise Terminated if self.terminated else KeyboardInterrupt
