"""A vLLM server for a harness: started, waited for, asked, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from experiments.environment import users_environment
from experiments.serve import process_group, server_command
from experiments.usage import UsageError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOST = "127.0.0.1"

#: For every server: no word to anybody outside, no log line per request, and 1 GiB of KV
#: cache where it lies in main memory.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
_LAST_LINES = 3


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server that answers.

    Parameters
    ----------
    url
        Up to and with the version, as OpenAI's clients take it.
    model
        Name of its model.
    start_s
        Seconds it took to answer.
    """

    url: str
    model: str
    start_s: float

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
        with _local().open(request, timeout=120) as response:
            for line in response:
                data = line.decode().removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield json.loads(data)["choices"][0]["delta"].get("content") or ""


def on_cpu() -> bool:
    """Whether the installed vLLM is the build without a GPU."""
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    model: str,
    settings: dict[str, Any] | None,
    flags: Sequence[str],
    *,
    port: int | None = None,
    log: Path,
    start_s: float,
) -> Iterator[Server]:
    """
    A server for the length of a block.

    Parameters
    ----------
    model
        Name or folder.
    settings
        Of the adapter; None for vLLM's own scheduler.
    flags
        More of vLLM's flags.
    port
        Port on this machine; None for any that is free.
    log
        File for what it prints.
    start_s
        Seconds to wait until it answers.

    Raises
    ------
    UsageError
        If it ends, or does not answer in time; with its last lines.
    """
    port = free_port() if port is None else port
    command = server_command(
        model,
        settings,
        ["--host", HOST, "--port", str(port), "--served-model-name", "demo", *flags],
    )
    began_s = time.monotonic()
    with (
        open(log, "w", encoding="utf-8") as file,
        process_group(
            command, env={**_ENVIRONMENT, **users_environment()}, stdout=file, stderr=file
        ) as process,
    ):
        _wait(f"http://{HOST}:{port}/health", process, log, began_s + start_s)
        yield Server(f"http://{HOST}:{port}/v1", "demo", time.monotonic() - began_s)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, until_s: float) -> None:
    while True:
        with contextlib.suppress(OSError), _local().open(url, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > until_s:
            state = "does not answer" if process.poll() is None else "has ended"
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = " / ".join(lines[-_LAST_LINES:]) or "nothing"
            raise UsageError(f"vLLM's server {state}; {log} says: {said}")
        time.sleep(0.2)


def _local() -> urllib.request.OpenerDirector:
    """Opens local addresses, whatever proxy the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
