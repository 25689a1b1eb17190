"""Instances to compare solvers on: captured from a simulation, read from .npz, generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate

from andes_opt import families
from andes_opt.checks import whole
from andes_opt.instance import Instance
from experiments.configuration.compose import build
from experiments.configuration.errors import UsageError, not_understood
from experiments.runs.simulation import run_simulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

    from andes_opt.plan import Plan
    from andes_opt.solver import Solver

#: Names of captured instances begin so.
CAPTURED = "solve_"


class NothingSolved(UsageError):
    """The simulated policy never had anything to solve."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedInstance:
    """An instance, where it comes from, and its name there."""

    source: str
    name: str
    instance: Instance


class InstanceRecorder:
    """
    A solver that hands on to another one and keeps a sample of the instances it saw.

    The sample is even: every stride-th instance, and the stride doubles whenever twice
    the wanted number is held, so that a run of any length needs no more memory.

    Parameters
    ----------
    solver
        The solver that answers.
    wanted
        Instances to keep, >= 1.

    Raises
    ------
    ValueError
        If ``wanted`` is < 1.
    """

    def __init__(self, solver: Solver, wanted: int) -> None:
        whole("capture", wanted, 1)
        self._solver = solver
        self._wanted = wanted
        self._kept: list[tuple[int, Instance]] = []
        self._stride = 1
        self._seen = 0

    @property
    def exact(self) -> bool:
        """Return whether the solver that answers is exact."""
        return self._solver.exact

    def solve(self, instance: Instance, *, time_limit_s: float | None = None) -> Plan:
        """Answer, and perhaps keep the instance."""
        if self._seen % self._stride == 0:
            self._kept.append((self._seen, instance))
            if len(self._kept) == 2 * self._wanted:
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1
        return self._solver.solve(instance, time_limit_s=time_limit_s)

    def sample(self) -> list[tuple[int, Instance]]:
        """Return at most ``wanted`` (number of the solve, instance), evenly spread over the run."""
        count = len(self._kept)
        if count <= self._wanted:
            return list(self._kept)
        return [self._kept[k * count // self._wanted] for k in range(self._wanted)]


def captured(config: DictConfig, wanted: int) -> list[NamedInstance]:
    """
    Return instances that a policy solves while it serves the configured workload.

    Parameters
    ----------
    config
        With the nodes ``workload``, ``engine``, ``policy``, ``solver``, ``objective`` and
        ``seed`` of ``conf/simulate.yaml``.
    wanted
        How many, spread evenly over the run; fewer if it solves fewer.

    Raises
    ------
    UsageError
        If the policy uses no solver.
    NothingSolved
        If the policy never had anything to solve.
    """
    if "solver" not in config.policy:
        raise UsageError("the policy uses no solver, so there is nothing to capture; try andes.")
    recorder = InstanceRecorder(build(config, "solver"), wanted)
    policy = instantiate(config.policy, solver=recorder)
    run_simulation(config, policy=policy, description="capturing")
    sample = recorder.sample()
    if not sample:
        raise NothingSolved(
            "nothing was solved: the engine was never under pressure; raise the rate."
        )
    return [
        NamedInstance("captured", f"{CAPTURED}{number:06d}", instance)
        for number, instance in sample
    ]


def from_folder(folder: Path) -> list[NamedInstance]:
    """
    Return all .npz instances of a folder, by name.

    Raises
    ------
    UsageError
        If the folder is missing or holds no .npz file.
    ValueError
        If a file holds no instance.
    """
    if not folder.is_dir():
        raise UsageError(f"corpus={folder} is no folder.")
    # What begins with a dot was left half-written by a process that was killed.
    paths = sorted(path for path in folder.glob("*.npz") if not path.name.startswith("."))
    if not paths:
        raise UsageError(f"corpus={folder} holds no .npz file.")
    return [NamedInstance("corpus", path.stem, Instance.load(path)) for path in paths]


def generated(
    names: Sequence[str], sizes: Sequence[int], count: int, seed: int
) -> list[NamedInstance]:
    """
    Return instances of named families, ``count`` per family and size.

    Raises
    ------
    UsageError
        If there is no such family.
    ValueError
        If a size or the count is out of range.
    """
    if not (names and sizes):
        raise UsageError("families= and sizes= name no instance.")
    whole("count", count, 1)
    for size in sizes:
        whole("sizes", size, 0)
    for name in names:
        if name not in families.FAMILIES:
            raise not_understood("families", name, families.FAMILIES)
    return [
        NamedInstance(name, f"n{size}_seed{seed + k}", families.make(name, size, seed + k))
        for name in names
        for size in sizes
        for k in range(count)
    ]


def collect(config: DictConfig) -> list[NamedInstance]:
    """
    Return the instances that ``conf/quality.yaml`` asks for.

    Raises
    ------
    UsageError
        If it names both a corpus and families.
    """
    if config.corpus is not None and config.families:
        raise UsageError("corpus= and families= exclude each other: give one of them.")
    if config.corpus is not None:
        return from_folder(Path(config.corpus).expanduser())
    if config.families:
        names = [config.families] if isinstance(config.families, str) else config.families
        return generated(names, config.sizes, config.count, config.seed)
    return captured(config, config.capture)


def save(instances: Sequence[NamedInstance], folder: Path) -> list[Path]:
    """Write each instance to ``folder/NAME.npz``, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for named in instances:
        path = folder / f"{named.name}.npz"
        named.instance.save(path)
        paths.append(path)
    return paths
