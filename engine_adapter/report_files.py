"""Where the adapter's counters go: a file of the user's, and what shows them at ``/metrics``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_adapter.report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine_adapter.metrics import SharedMetrics

#: Names the folder by which several API servers show the same metrics; vLLM sets it.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


class ReportFiles:
    """
    Writes one engine's counters.

    Parameters
    ----------
    report_path
        File of the user's, as in the settings; None for none.
    engine
        The engine's number among data-parallel ones, 0 for the first or only one.
    instance
        vLLM's name of the instance if its metrics are shown, else empty.

    Attributes
    ----------
    wanted
        False if nobody reads the counters.
    """

    def __init__(self, report_path: str | None, engine: int, instance: str) -> None:
        self._engine = engine
        self._shared: SharedMetrics | None = None
        folder = shared_folder() if instance else None
        if report_path is not None:
            self._path, self._keep = numbered(report_path, engine), True
        elif instance and folder is None:
            self._path, self._keep = scratch_report(instance, engine), False
        else:
            self._path, self._keep = "", True
        if folder is not None:
            from engine_adapter.metrics import SharedMetrics

            self._shared = SharedMetrics(folder, engine)
        self.wanted = bool(self._path) or self._shared is not None

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write the counters; OSError if that fails."""
        if self._path:
            write_report(self._path, summary)
        if self._shared is not None:
            self._shared.write(summary)

    def close(self, summary: Callable[[], Mapping[str, Any]]) -> None:
        """Write the counters for the last time; files that nobody asked for go."""
        if not self._keep:
            Path(self._path).unlink(missing_ok=True)
        elif self.wanted:
            self.write(summary())


def numbered(path: str, engine: int) -> str:
    """
    Returns the file of one of several data-parallel engines.

    The first one's is ``path``; ``report.json`` of the second is ``report.1.json``.
    """
    file = Path(path)
    return path if engine == 0 else str(file.with_name(f"{file.stem}.{engine}{file.suffix}"))


def scratch_report(instance: str, engine: int) -> str:
    """
    Returns where an engine's counters are written, unless its settings say.

    The engine and the server that shows its metrics are two processes; both know the
    instance's name.

    Parameters
    ----------
    instance
        vLLM's name of the instance.
    engine
        The engine's number.
    """
    return str(Path(tempfile.gettempdir()) / f"andes_opt-{instance}-{engine}.json")


def shared_folder() -> str | None:
    """Returns the folder by which several API servers show the same metrics; None if one does."""
    return os.environ.get(_SHARED)
