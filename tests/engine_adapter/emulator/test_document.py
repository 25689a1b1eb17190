"""The example of docs/emulate.md: a scheduler of one's own in ten lines, beside vLLM's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

DOCUMENT = Path(__file__).parents[3] / "docs" / "emulate.md"


def test_the_example_runs_as_printed() -> None:
    """It prints both schedulers, and the one that lets short prompts in first starts sooner."""
    example = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]
    lines = [line for line in example.splitlines() if line and not line.startswith("from ")]
    assert len(lines) <= 10
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=quiet,
    )
    assert done.returncode == 0, done.stderr
    stock, mine = (line.split() for line in done.stdout.splitlines()[-2:])
    assert stock[0] == "vllm.v1.core.sched.async_scheduler.AsyncScheduler"
    assert mine[0] == "__main__.ShortestPromptFirst"
    assert float(mine[1]) < float(stock[1])
