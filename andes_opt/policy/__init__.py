"""Scheduling policies, one a file."""

from andes_opt.policy.andes import Andes
from andes_opt.policy.andes_released import AndesReleased
from andes_opt.policy.buffer_aware import BufferAware
from andes_opt.policy.fcfs import FCFS
from andes_opt.policy.least_attained import LeastAttained
from andes_opt.policy.least_qoe import LeastQoE
from andes_opt.policy.least_slack import LeastSlack
from andes_opt.policy.newest_first import NewestFirst
from andes_opt.policy.paced import Paced
from andes_opt.policy.rolling_horizon import RollingHorizon
from andes_opt.policy.round_robin import RoundRobin
from andes_opt.policy.srpt_oracle import SRPTOracle
from andes_opt.policy.thrift import Thrift
from andes_opt.policy.thumb import Thumb

__all__ = [
    "FCFS",
    "Andes",
    "AndesReleased",
    "BufferAware",
    "LeastAttained",
    "LeastQoE",
    "LeastSlack",
    "NewestFirst",
    "Paced",
    "RollingHorizon",
    "RoundRobin",
    "SRPTOracle",
    "Thrift",
    "Thumb",
]
