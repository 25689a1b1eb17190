"""Puts our scheduler in the place of vLLM's before vLLM's own tests are imported."""

from __future__ import annotations

import os

from vllm.v1.core.sched import async_scheduler, scheduler

from engine_adapter import scheduler as ours
from engine_adapter.scheduler import AndesScheduler, AndesSyncScheduler
from engine_adapter.settings import Settings


class Forced(AndesScheduler):
    """Asynchronous as its tests want it, whatever the platform says."""


if os.environ.get("ANDES_TESTS_POLICY") == "fcfs":
    left_alone = Settings(policy={"_target_": "andes_opt.policy.fcfs.FCFS"})
    ours.read_settings = lambda _: left_alone
scheduler.Scheduler = AndesSyncScheduler  # type: ignore[misc]
async_scheduler.AsyncScheduler = Forced  # type: ignore[misc]
