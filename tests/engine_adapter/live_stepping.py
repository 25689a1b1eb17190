"""vLLM's scheduler without a model: the emulator's own parts, and the fixture that uses them."""

from __future__ import annotations

from typing import Any, Protocol

from engine_adapter.emulator.checking_worker import CheckingWorker, reference
from engine_adapter.emulator.configuration import make_scheduler, write_tiny_config
from engine_adapter.emulator.stepped_engine import Engine

__all__ = [
    "CheckingWorker",
    "Engine",
    "Start",
    "make_scheduler",
    "reference",
    "write_tiny_config",
]


class Start(Protocol):
    """What the fixture ``start`` gives: makes an engine, which ends with the test."""

    def __call__(
        self,
        policy: dict[str, Any] | None = None,
        *,
        asynchronous: bool = False,
        scheduler_class: Any = None,
        adapter: dict[str, Any] | None = None,
        **options: Any,
    ) -> Engine:
        """With a policy an engine of ours, without one vLLM's own; options of make_scheduler."""
        ...
