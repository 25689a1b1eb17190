"""
vLLM's plug-in for the server's ``/metrics``: entry point ``vllm.stat_logger_plugins``.

vLLM loads it in every server of an environment that has andes-opt, so it does nothing where our
scheduler does not run, and never fails. The adapter lives in the engine's process and this in
the server's; the counters come by the adapter's file, which is at most a second old.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from engine_adapter.guard import LOGGER
from engine_adapter.internals import instance_of
from engine_adapter.metrics import metric_families
from engine_adapter.report import read_report, scratch_report
from engine_adapter.settings import KEY, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

#: The collector that stands in the registry; a new server of the same process replaces it.
_registered: list[ReportCollector] = []


class ReportCollector(Collector):
    """
    Shows what a report says whenever it is asked.

    Parameters
    ----------
    path
        The adapter's file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def describe(self) -> list[Metric]:
        """Nothing before the engine has served."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of the report; none if there is no report."""
        report = read_report(self._path)
        if report is not None:
            yield from metric_families(report)


class AndesStatLogger(AggregateStatLoggerBase):
    """
    Puts the adapter's metrics beside vLLM's own.

    Parameters
    ----------
    vllm_config
        vLLM's configuration.
    engine_indexes
        Numbers of the engines; the metrics are those of the one that wrote last.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        del engine_indexes
        if not _is_ours(vllm_config):
            return
        try:
            settings = read_settings(vllm_config.additional_config)
            path = settings.report_path
            if path is None:
                path = scratch_report(instance_of(vllm_config))
                # The engine's process may be ended before it can tidy up, this one ends last.
                atexit.register(Path(path).unlink, missing_ok=True)
            register(path)
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


def register(path: str) -> None:
    """Show the report at ``path`` at ``/metrics``, in place of an earlier one."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR") is not None:
        LOGGER.warning("No andes_opt metrics with several API servers: run one.")
        return
    while _registered:
        REGISTRY.unregister(_registered.pop())
    collector = ReportCollector(path)
    REGISTRY.register(collector)
    _registered.append(collector)
