"""
Run vLLM's own scheduler tests with our class in place of vLLM's, and list those that differ.

    python tests/engine_adapter/run_vllm_tests.py            # the block of docs/live.md
    python tests/engine_adapter/run_vllm_tests.py --sources FOLDER

The tests are those of ``tests/v1/core`` that name a scheduler, in the source distribution of the
installed version, which pip brings; FOLDER is that distribution or a copy of the repository at
that version, unpacked. None of them is kept. A test that stock vLLM fails here (it wants a GPU or
a model, say) says nothing. Those that ours fails are run again with a policy that leaves
everything to vLLM's own order: what passes then, fails for what a policy does and not for the
adapter. Exits with 1 if a test that stock passes fails with ours for no known reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from engine_adapter.internals import installed_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TESTS = "tests/v1/core"
#: What vLLM's build wants before pip hands over its sources; nothing of it is built.
_BUILD = ("setuptools-rust", "semantic-version", "setuptools-scm", "vcs-versioning")
_REFUSED = "not understood: the adapter orders requests itself"
_REASONS = {
    "refused": "wants a scheduling policy that is refused",
    "plan": "order of service or head-room of plans: passes when the policy is `fcfs`",
}


def main() -> None:
    """Print how many tests pass with either scheduler, and the differences."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--sources", type=Path, help="an unpacked source distribution")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = options.sources or fetch(installed_version().split("+")[0], folder)
        run = folder / "run"
        # Without the package beside it, whose folder would hide the installed one.
        shutil.copytree(root / "tests", run / "tests")
        # For tests with models, and in need of many packages.
        (run / "tests" / "conftest.py").unlink()
        write_models(run)
        files = [
            str(path.relative_to(run))
            for path in sorted((run / _TESTS).glob("test_*.py"))
            if "cheduler" in path.read_text(encoding="utf-8") and "e2e" not in path.name
        ]
        failed_by_stock = failures(run, files, "stock")
        number = len(outcomes(run / "stock.xml")) - len(failed_by_stock)
        failed = failures(run, files, "ours")
        lost = {test: text for test, text in failed.items() if test not in failed_by_stock}
        open_ones = sorted(test for test, text in lost.items() if _REFUSED not in text)
        unexplained = failures(run, open_ones, "fcfs") if open_ones else {}
    print(
        f"With vLLM {installed_version()}, of {number} tests that its own scheduler passes here, "
        f"ours passes {number - len(lost)}.\n"
    )
    print("| tests | number | why not |\n| --- | ---: | --- |")
    for line in table(lost, unexplained):
        print(line)
    for test, text in unexplained.items():
        print(f"{test}:\n{text}\n", file=sys.stderr)
    raise SystemExit(bool(unexplained))


def table(lost: Mapping[str, str], unexplained: Mapping[str, str]) -> list[str]:
    """Returns a line for each test function: its name, how many of its cases, and the reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for test, text in lost.items():
        reason = _REASONS["refused" if _REFUSED in text else "plan"]
        counts[_function(test), "UNEXPLAINED" if test in unexplained else reason] += 1
    return [f"| `{name}` | {n} | {reason} |" for (name, reason), n in sorted(counts.items())]


def _function(test: str) -> str:
    return test.split("[")[0].removeprefix(f"{_TESTS}/")


def fetch(version: str, folder: Path) -> Path:
    """
    Let pip bring the source distribution of a version.

    Parameters
    ----------
    version
        Of vLLM.
    folder
        Gets it.

    Returns
    -------
    Path
        The folder that holds ``tests``.
    """
    pip = [sys.executable, "-m", "pip"]
    build = folder / "build"
    quiet = {"check": True, "stdout": sys.stderr}
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", build, *_BUILD], **quiet)
    # pip asks a source distribution for its metadata, and the build names its version by device.
    environment = {
        **os.environ,
        "PYTHONPATH": str(build),
        "VLLM_TARGET_DEVICE": "empty",
        "VLLM_VERSION_OVERRIDE": version,
    }
    command = [*pip, "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "vllm"]
    subprocess.run([*command, "-d", folder, f"vllm=={version}"], env=environment, **quiet)
    with tarfile.open(next(folder.glob("vllm-*.tar.gz"))) as archive:
        members = [m for m in archive.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        archive.extractall(folder, members=members, filter="data")
    return next(folder.glob("vllm-*/"))


def write_models(folder: Path) -> None:
    """Write the configurations that tests name, so that no model hub is asked for them."""
    from transformers import OPTConfig

    for name in ("facebook/opt-125m", "facebook/opt-350m"):
        config = OPTConfig()  # its defaults are the small one's
        config.architectures = ["OPTForCausalLM"]
        config.save_pretrained(folder / name)


def failures(folder: Path, tests: Sequence[str], scheduler: str) -> dict[str, str]:
    """
    Run tests once.

    Parameters
    ----------
    folder
        Holds ``tests``, and gets the outcomes.
    tests
        Files, or tests in them.
    scheduler
        ``"stock"``, ``"ours"``, or ``"fcfs"`` for ours with a policy that leaves all to vLLM.

    Returns
    -------
    dict[str, str]
        Those that failed, and what their failures said.
    """
    plugin = [] if scheduler == "stock" else ["-p", "vllm_tests_plugin"]
    here = Path(__file__).resolve().parent
    path = [str(here), str(here.parents[1]), str(folder)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"),
            *(*plugin, f"--junitxml={folder / scheduler}.xml", "-o", "junit_family=xunit1"),
            *tests,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "ANDES_TESTS_POLICY": scheduler,
        },
        stdout=sys.stderr,
        check=False,
    )
    found = outcomes(folder / f"{scheduler}.xml")
    return {test: text for test, text in found.items() if text is not None}


def outcomes(result: Path) -> dict[str, str | None]:
    """Returns each test that ran and what its failure said, None if it passed."""
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(result).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        file, names = str(case.get("file")), str(case.get("classname")).split(".")
        classes = names[len(Path(file).with_suffix("").parts) :]
        bad = [node for node in case if node.tag in ("failure", "error")]
        text = f"{bad[0].get('message')}\n{bad[0].text}" if bad else None
        found["::".join([file, *classes, str(case.get("name"))])] = text
    return found


if __name__ == "__main__":
    main()
