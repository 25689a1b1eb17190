"""
vLLM's plug-in for the server's ``/metrics``: entry point ``vllm.stat_logger_plugins``.

vLLM loads it in every server of an environment that has andes-opt, so it does nothing where our
scheduler does not run, and never fails. The adapter lives in the engine's process and this in
the server's; the counters come by a file of each engine, which is at most a second old.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from engine_adapter.guard import LOGGER
from engine_adapter.internals import instance_of
from engine_adapter.metrics import metric_families
from engine_adapter.report import read_report
from engine_adapter.report_files import numbered, scratch_report, shared_folder
from engine_adapter.settings import KEY, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

#: The collector that stands in the registry; a new server of the same process replaces it.
_registered: list[ReportCollector] = []


class ReportCollector(Collector):
    """
    Shows what reports say whenever it is asked.

    Parameters
    ----------
    paths
        The engine's number to its adapter's file.
    """

    def __init__(self, paths: Mapping[int, str]) -> None:
        self._paths = dict(paths)

    def describe(self) -> list[Metric]:
        """Nothing before the engine has served."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of the engines that have a report."""
        reports = {engine: read_report(path) for engine, path in self._paths.items()}
        found = {engine: report for engine, report in reports.items() if report is not None}
        if found:
            yield from metric_families(found)


class AndesStatLogger(AggregateStatLoggerBase):
    """
    Puts the adapter's metrics beside vLLM's own.

    Parameters
    ----------
    vllm_config
        vLLM's configuration.
    engine_indexes
        Numbers of the engines, each of which has its own series.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        # With several API servers the engines write where all of the servers read.
        if not _is_ours(vllm_config) or shared_folder() is not None:
            return
        try:
            settings = read_settings(vllm_config.additional_config)
            paths = {}
            for engine in engine_indexes:
                if settings.report_path is not None:
                    paths[engine] = numbered(settings.report_path, engine)
                    continue
                paths[engine] = scratch_report(instance_of(vllm_config), engine)
                # The engine's process may be ended before it can tidy up, this one ends last.
                atexit.register(Path(paths[engine]).unlink, missing_ok=True)
            register(paths)
        except Exception as error:
            LOGGER.warning("No andes_opt metrics: %s", error)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """The engine keeps count itself."""

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def _is_ours(vllm_config: Any) -> bool:
    """Whether a configuration speaks of the adapter."""
    config = vllm_config.additional_config
    scheduler = getattr(vllm_config.scheduler_config, "scheduler_cls", None)
    return (isinstance(config, Mapping) and KEY in config) or "engine_adapter" in str(scheduler)


def register(paths: Mapping[int, str]) -> None:
    """Show the engines' reports at ``/metrics``, in place of earlier ones."""
    while _registered:
        REGISTRY.unregister(_registered.pop())
    collector = ReportCollector(paths)
    REGISTRY.register(collector)
    _registered.append(collector)
