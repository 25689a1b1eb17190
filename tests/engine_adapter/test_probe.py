"""The vLLM internals that the adapter touches, in the sources of several vLLM versions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import engine_adapter
from engine_adapter.internals import READ_VERSIONS, REQUIRED, TESTED_VERSIONS
from engine_adapter.probe import Requirement, classes_in, missing

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Made by make_vllm_sources.py from the wheels of these versions.
SOURCES: dict[str, Any] = json.loads(
    Path(__file__).with_name("vllm_sources.json").read_text(encoding="utf-8")
)


def classes_of(version: str, module: str) -> Mapping[str, Any] | None:
    """Classes of a module as noted from a wheel."""
    classes = SOURCES[version]["modules"].get(module)
    if classes is None:
        return None
    return {
        name: {k: None if v is None else tuple(v) for k, v in names.items()}
        for name, names in classes.items()
    }


@pytest.mark.parametrize("version", SOURCES)
def test_versions(version: str) -> None:
    """Everything that the adapter touches exists in this version's wheel, with its signature."""
    assert missing(REQUIRED, lambda module: classes_of(version, module)) == []


def test_several_versions() -> None:
    """Three versions at least, a GPU wheel the newest of them, and the tested one among them."""
    assert tuple(SOURCES) == READ_VERSIONS
    assert len(SOURCES) >= 3
    newest = max(SOURCES, key=lambda v: tuple(int(part) for part in v.split(".")))
    assert SOURCES[newest]["distribution"] == "vllm"
    assert set(TESTED_VERSIONS) <= set(SOURCES)


def test_what_is_missing_is_said() -> None:
    """A module, a class, a name or a parameter that is gone is named."""

    def without(module: str) -> Mapping[str, Any] | None:
        if module == "vllm.v1.core.block_pool":
            return None
        classes = {k: dict(v) for k, v in (classes_of("0.32.0", module) or {}).items()}
        classes.pop("RequestStatus", None)
        if "Request" in classes:
            del classes["Request"]["num_computed_tokens"]
        if "Scheduler" in classes:
            classes["Scheduler"]["_preempt_request"] = (["request", "why", "timestamp"], 3)
        return classes

    assert missing(REQUIRED, without) == [
        "vllm.v1.core.sched.scheduler.Scheduler._preempt_request(request, timestamp)",
        "module vllm.v1.core.block_pool",
        "vllm.v1.request.Request.num_computed_tokens",
        "class vllm.v1.request.RequestStatus",
    ]


def test_classes_in() -> None:
    """Methods, attributes of the class and attributes of self are found, with what a call needs."""
    found = classes_in(
        "class A:\n"
        "    x: int = 0\n"
        "    Y = 1\n"
        "    def __init__(self):\n"
        "        self.a, self.b = 1, 2\n"
        "        self.c: int = 3\n"
        "    def f(self, p, q=1, *, r): pass\n"
        "    @property\n"
        "    def g(self): return other.d\n"
    )["A"]
    assert set(found) == {"x", "Y", "__init__", "a", "b", "c", "f", "g"}
    assert found["f"] == (["p", "q"], 2)
    need = (Requirement("m", "A", ("f",), (("f", ("p",)),)),)
    assert missing(need, lambda _: {"A": found}) == ["m.A.f(p)"]


def test_internals_in_one_file() -> None:
    """No other file of the adapter names a private attribute of vLLM's, or its queues."""
    folder = Path(engine_adapter.__file__).parent
    private = {
        name
        for need in REQUIRED
        for name in need.names
        if name.startswith("_") or name in {"kv_cache_manager", "finished_req_ids", "block_pool"}
    }
    for path in folder.glob("*.py"):
        if path.name != "internals.py":
            words = set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
            assert not words & private, path.name
