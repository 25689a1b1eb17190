"""
QoE-aware LLM request scheduling as exact optimisation.

The names below are the package's public surface. They are imported on first use, so that
a program pays only for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from andes_opt.engine import EngineProfile
    from andes_opt.instance import GainModel, GainTable, Instance
    from andes_opt.latency import LatencyModel
    from andes_opt.metrics import summarise
    from andes_opt.objective import AverageQoE, Objective
    from andes_opt.plan import InvalidPlan, Plan, Status, make_plan, verify
    from andes_opt.policy.andes import Andes
    from andes_opt.policy.fcfs import FCFS
    from andes_opt.policy.round_robin import RoundRobin
    from andes_opt.policy.thrift import Thrift
    from andes_opt.qoe import QoETarget
    from andes_opt.simulator import SimulationResult, simulate
    from andes_opt.snapshot import Action, Decision, Policy, Snapshot, State
    from andes_opt.solver import Solver
    from andes_opt.workload import Gamma, Poisson, Requests, Surge, Workload

_HOMES = {
    "Action": "snapshot",
    "Andes": "policy.andes",
    "AverageQoE": "objective",
    "Decision": "snapshot",
    "EngineProfile": "engine",
    "FCFS": "policy.fcfs",
    "GainModel": "instance",
    "GainTable": "instance",
    "Gamma": "workload",
    "Instance": "instance",
    "InvalidPlan": "plan",
    "LatencyModel": "latency",
    "Objective": "objective",
    "Plan": "plan",
    "Poisson": "workload",
    "Policy": "snapshot",
    "QoETarget": "qoe",
    "Requests": "workload",
    "RoundRobin": "policy.round_robin",
    "SimulationResult": "simulator",
    "Snapshot": "snapshot",
    "Solver": "solver",
    "State": "snapshot",
    "Status": "plan",
    "Surge": "workload",
    "Thrift": "policy.thrift",
    "Workload": "workload",
    "make_plan": "plan",
    "simulate": "simulator",
    "summarise": "metrics",
    "verify": "plan",
}

__all__ = [
    "FCFS",
    "Action",
    "Andes",
    "AverageQoE",
    "Decision",
    "EngineProfile",
    "GainModel",
    "GainTable",
    "Gamma",
    "Instance",
    "InvalidPlan",
    "LatencyModel",
    "Objective",
    "Plan",
    "Poisson",
    "Policy",
    "QoETarget",
    "Requests",
    "RoundRobin",
    "SimulationResult",
    "Snapshot",
    "Solver",
    "State",
    "Status",
    "Surge",
    "Thrift",
    "Workload",
    "make_plan",
    "simulate",
    "summarise",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"andes_opt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'andes_opt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
