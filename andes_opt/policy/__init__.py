"""Scheduling policies, one a file."""

from andes_opt.policy.andes import Andes
from andes_opt.policy.fcfs import FCFS
from andes_opt.policy.round_robin import RoundRobin

__all__ = ["FCFS", "Andes", "RoundRobin"]
