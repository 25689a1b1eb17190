"""A vLLM server for a harness: started, waited for, asked, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
import urllib.request
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

from experiments.configuration.errors import UsageError
from experiments.configuration.threads import users_environment
from experiments.live.process import process_group
from experiments.live.vllm_command import server_command

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence
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
_ERROR = re.compile(r"\b\w*(Error|Exception|Incompatible): ")


class ServerFailed(UsageError):
    """The server ended, or did not answer in time."""


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
        with local_opener().open(request, timeout=120) as response:
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
    command = server_command(model, settings, [*address(port, "demo"), *flags])
    with answering(command, port, {}, log=log, start_s=start_s) as (_, started_s):
        yield Server(f"http://{HOST}:{port}/v1", "demo", started_s)


def address(port: int, name: str) -> list[str]:
    """Flags that say where a server listens and how its model is called."""
    return ["--host", HOST, "--port", str(port), "--served-model-name", name]


@contextlib.contextmanager
def answering(
    command: Sequence[str], port: int, environment: Mapping[str, str], *, log: Path, start_s: float
) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """
    A server's process for the length of a block, once it answers.

    Parameters
    ----------
    command
        What starts it.
    port
        Where it listens.
    environment
        Variables that it gets beside the user's.
    log
        File for what it prints.
    start_s
        Seconds to wait until it answers.

    Yields
    ------
    tuple[subprocess.Popen, float]
        The process, and the seconds it took to answer.

    Raises
    ------
    ServerFailed
        If it ends, or does not answer in time; with its last lines.
    """
    began_s = time.monotonic()
    with (
        open(log, "w", encoding="utf-8") as file,
        process_group(
            command,
            env={**_ENVIRONMENT, **users_environment(), **environment},
            stdout=file,
            stderr=file,
        ) as process,
    ):
        _wait(f"http://{HOST}:{port}/health", process, log, began_s + start_s)
        yield process, time.monotonic() - began_s


def last_words(log: Path) -> str:
    """What a server said last: the last line that names an error, else its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if _ERROR.search(line)]
    said = " / ".join(errors[-1:] or lines[-_LAST_LINES:]) or "nothing"
    return f"{log} says: {said}"


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, until_s: float) -> None:
    while True:
        with contextlib.suppress(OSError), local_opener().open(url, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > until_s:
            state = "does not answer" if process.poll() is None else "has ended"
            raise ServerFailed(f"vLLM's server {state}; {last_words(log)}")
        time.sleep(0.2)


def local_opener() -> urllib.request.OpenerDirector:
    """Opens local addresses, whatever proxy the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
