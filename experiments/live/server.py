"""A vLLM server for a harness: started, waited for, asked, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from experiments.configuration.errors import UsageError
from experiments.configuration.threads import users_environment
from experiments.live.process import process_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
#: How long a server may take to end after its engine has.
DYING_S = 5.0

#: For every server: nothing is sent to anybody outside, no log line per request, and 1 GiB of KV
#: cache where it lies in main memory.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
_LAST_LINES = 3
_ERROR = re.compile(r"\b\w*(Error|Exception|Incompatible): ")


class EngineFailed(RuntimeError):
    """The engine did not start, or ended before it was asked to."""


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server that answers.

    Parameters
    ----------
    url
        For :class:`experiments.client.endpoint.Endpoint`.
    model
        Name of its model.
    log
        File with what it prints.
    report
        File with the adapter's counters; None for stock vLLM.
    process
        Its process.
    start_s
        Seconds from its start until it answered.
    """

    url: str
    model: str
    log: Path
    report: Path | None
    process: subprocess.Popen[bytes]
    start_s: float

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
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(wait_s)
            raise EngineFailed(f"the engine ended, status {status}; {_last_words(self.log)}")

    def metrics(self) -> dict[str, float]:
        """Return vLLM's Prometheus counters and gauges, summed over their labels."""
        url = self.url.removesuffix("/v1") + "/metrics"
        with _open(url, timeout_s=30) as page:
            return parse_metrics(page.read().decode())

    def adapter(self) -> dict[str, Any]:
        """Return the adapter's counters as it last wrote them; empty for stock vLLM."""
        if self.report is None or not self.report.exists():
            return {}
        counters: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        return counters

    def ask(self, question: str, tokens: int) -> Iterator[str]:
        """
        Ask a question in a chat, greedily.

        Parameters
        ----------
        question
            The user's words.
        tokens
            Of the answer, at most.

        Yields
        ------
        str
            Pieces of the answer, as they come.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "vllm_xargs": {"ttft_s": 1.0, "tds": 4.8},
        }
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _open(request, timeout_s=120) as response:
            for line in response:
                data = line.decode().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield json.loads(data)["choices"][0]["delta"].get("content") or ""


@contextlib.contextmanager
def running(
    command: Sequence[str],
    model: str,
    port: int,
    *,
    log: Path,
    start_s: float,
    environment: Mapping[str, str] | None = None,
    report: Path | None = None,
) -> Iterator[Server]:
    """
    Run a server for the length of a block, from when it answers.

    Parameters
    ----------
    command
        What starts it.
    model, port
        How it calls its model and where it listens, as in :func:`address`.
    log
        File for what it prints.
    start_s
        Seconds to wait until it answers.
    environment
        Variables that it gets beside the user's.
    report
        File for the adapter's counters.

    Raises
    ------
    EngineFailed
        If the server ends, or does not answer in time; with the end of its log.
    """
    began_s = time.monotonic()
    variables = {**_ENVIRONMENT, **users_environment(), **(environment or {})}
    with (
        open(log, "w", encoding="utf-8") as file,
        process_group(command, env=variables, stdout=file, stderr=file) as process,
    ):
        _wait(f"http://{HOST}:{port}/health", process, log, began_s + start_s)
        started_s = time.monotonic() - began_s
        server = Server(f"http://{HOST}:{port}/v1", model, log, report, process, started_s)
        try:
            yield server
        except (OSError, UsageError):
            # Nobody listens any more: the reason is in the server's log.
            server.check(wait_s=DYING_S)
            raise


def address(port: int, model: str) -> list[str]:
    """Return the flags that say where a server listens and how it calls its model."""
    return ["--host", HOST, "--port", str(port), "--served-model-name", model]


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def on_cpu() -> bool:
    """Return whether the installed vLLM is the build without a GPU."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


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


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, until_s: float) -> None:
    while True:
        with contextlib.suppress(OSError), _open(url, timeout_s=5):
            return
        if process.poll() is not None or time.monotonic() > until_s:
            state = "does not answer" if process.poll() is None else "has ended"
            raise EngineFailed(f"vLLM's server {state}; {_last_words(log)}")
        time.sleep(0.2)


def _last_words(log: Path) -> str:
    """What a server said last: the last line that names an error, else its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.search(line)]
    said = " / ".join(errors[-1:] or lines[-_LAST_LINES:]) or "nothing"
    return f"{log} says: {said}"


def _open(request: str | urllib.request.Request, timeout_s: float) -> Any:
    """Open a local address, whatever proxy the environment names."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return direct.open(request, timeout=timeout_s)
