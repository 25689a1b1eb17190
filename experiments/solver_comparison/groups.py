"""What the portfolio solves: families by size, simulated loads, one batch size alone."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from andes_opt import families
from andes_opt.instance import GainTable, Instance
from experiments.configuration.compose import load_choice
from experiments.configuration.errors import not_understood
from experiments.solver_comparison import instances
from experiments.solver_comparison.instances import NamedInstance, NothingSolved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omegaconf import DictConfig


#: Kinds of groups: generated, the scheduling steps of a simulated load, one batch size alone.
FAMILY, LOAD, ONE_BATCH = "family", "load", "one batch size"


@dataclass(frozen=True, slots=True)
class Group:
    """
    Instances of one source and size.

    Parameters
    ----------
    kind
        :data:`FAMILY`, :data:`LOAD` or :data:`ONE_BATCH`.
    source
        Family or load, as rows name it.
    size
        Requests per instance; None where that varies.
    core
        So many, the first ones, are put to every solver.
    count
        How many there are.
    problem
        Number -> instance.
    """

    kind: str
    source: str
    size: int | None
    core: int
    count: int
    problem: Callable[[int], NamedInstance]


def generated_groups(config: DictConfig, family: str) -> list[Group]:
    """Return the groups of a named family, a size each, ascending."""
    if family not in families.FAMILIES:
        raise not_understood("families", family, families.FAMILIES)
    largest = config.portfolio.largest.get(family, math.inf)
    core = config.count * config.portfolio.core_factor.get(family, 1)
    count = core * (1 + config.portfolio.more)

    def problem(size: int, number: int) -> NamedInstance:
        return instances.generated([family], [size], 1, config.seed + number)[0]

    return [
        Group(FAMILY, family, size, core, count, partial(problem, size))
        for size in sorted(config.sizes)
        if size <= largest
    ]


def captured_group(config: DictConfig, engine: str, rate: float) -> Group:
    """
    Return scheduling steps of a simulated load, the evenly spread core ones first.

    A load that never brought the engine under pressure has none.
    """
    load = config.copy()
    load.engine = load_choice("engine", engine)
    load.workload.rate = rate
    source = f"{engine} at {rate}/s"
    try:
        sample = instances.captured(load, config.capture)
    except NothingSolved:
        sample = []
    spread = {k * len(sample) // config.count for k in range(config.count)}
    first = sorted(spread) if sample else []
    order = first + [k for k in range(len(sample)) if k not in first]

    def problem(number: int) -> NamedInstance:
        named = sample[order[number]]
        return NamedInstance(source, named.name, named.instance)

    return Group(LOAD, source, None, len(first), len(sample), problem)


def one_batch_group(config: DictConfig, answers: Sequence[Mapping[str, Any]]) -> Group | None:
    """
    Return large instances with the batch size fixed at its optimum; None if sizes are too small.

    Only instances whose best batch size ``exact`` has proven take part.
    """
    setting = config.portfolio.one_batch
    best = {
        cell["instance"]: cell["batch_size"]
        for cell in answers
        if cell["source"] == setting.family and cell["solver"] == "exact" and cell["certified"]
    }
    seeds = [config.seed + k for k in range(setting.count)]
    names = {seed: f"n{setting.requests}_seed{seed}" for seed in seeds}
    seeds = [seed for seed in seeds if names[seed] in best]
    if not seeds:
        return None
    source = f"{setting.family}, one B"

    def problem(number: int) -> NamedInstance:
        named = instances.generated([setting.family], [setting.requests], 1, seeds[number])[0]
        batch_size = best[named.name]
        fixed = fix_batch_size(named.instance, batch_size)
        return NamedInstance(source, named.name, fixed)

    return Group(ONE_BATCH, source, None, len(seeds), len(seeds), problem)


def fix_batch_size(instance: Instance, batch_size: int) -> Instance:
    """Return the same instance with one batch size only."""
    gains = GainTable(instance.gains_at(batch_size)[None, :], batch_size)
    return Instance(
        instance.weights, instance.capacity, batch_size, batch_size, gains, instance.exactly
    )


def fingerprint(instance: Instance) -> str:
    """Return a hash of an instance; of its gains, those at the smallest and the largest batch."""
    first, last, exactly = instance.min_batch, instance.max_batch, instance.exactly
    digest = hashlib.sha256(f"{instance.capacity} {first} {last} {exactly}".encode())
    for numbers in (instance.weights, instance.gains_at(first), instance.gains_at(last)):
        digest.update(numbers.tobytes())
    return digest.hexdigest()[:16]
