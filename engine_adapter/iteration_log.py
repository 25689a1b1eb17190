"""A file of timed iterations, from which ``andes-opt calibrate`` fits an engine profile."""

from __future__ import annotations

from typing import TextIO

#: Columns of the file, as ``andes_opt.calibration`` reads them.
HEADER = "batch,context_tokens,prefill_tokens,seconds\n"
_FLUSH_EVERY = 64


class IterationLog:
    """
    Writes a line per iteration.

    Parameters
    ----------
    path
        The CSV file; an old one is replaced.
    """

    def __init__(self, path: str) -> None:
        # Open as long as the engine lives.
        self._file: TextIO = open(path, "w", encoding="utf-8")  # noqa: SIM115
        self._file.write(HEADER)
        self._lines = 0

    def add(self, duration_s: float, batch: int, context: int, prefill: int) -> None:
        """
        Write one iteration.

        Parameters
        ----------
        duration_s
            How long it took.
        batch, context, prefill
            Requests that decoded, their KV tokens, and prompt tokens computed.
        """
        self._file.write(f"{batch},{context},{prefill},{duration_s:.9f}\n")
        self._lines += 1
        if self._lines % _FLUSH_EVERY == 0:
            self._file.flush()

    def close(self) -> None:
        """Write out the rest; harmless if repeated."""
        self._file.close()
