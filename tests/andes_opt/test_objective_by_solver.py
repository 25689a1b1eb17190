"""Every solver of the registry optimises every objective of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from andes_opt.formulation import step_instance
from andes_opt.plan import Status, verify
from andes_opt.testing import enumerate_optimum

if TYPE_CHECKING:
    from collections.abc import Callable

    from andes_opt.snapshot import Snapshot

CONF = Path(__file__).parents[2] / "conf"
OBJECTIVES = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
SOLVERS = [
    pytest.param(path.stem, marks=pytest.mark.torch) if path.stem == "dp_torch" else path.stem
    for path in sorted((CONF / "solver").glob("*.yaml"))
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_every_objective(
    make_snapshot: Callable[..., Snapshot], name: str, objective: str
) -> None:
    """Exact solvers find the enumerated optimum of a step, the others stay between it and 0."""
    solver = instantiate(OmegaConf.load(CONF / "solver" / f"{name}.yaml"))
    aim = instantiate(OmegaConf.load(CONF / "objective" / f"{objective}.yaml"))
    for seed in range(3):
        snapshot = make_snapshot(9, seed)
        instance = step_instance(snapshot, aim, prune_batch=False)
        plan = solver.solve(instance)  # no limit: it may have to compile first
        verify(instance, plan)
        optimum = enumerate_optimum(instance)
        slack = 1e-6 * max(1.0, optimum)
        assert 0.0 <= plan.value <= optimum + slack <= plan.bound + 2 * slack
        if solver.exact:
            assert plan.status is Status.OPTIMAL
            assert plan.value == pytest.approx(optimum, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_steps_are_not_trivial(make_snapshot: Callable[..., Snapshot], objective: str) -> None:
    """In the steps of the test above memory does not suffice for everyone, and somebody gains."""
    aim = instantiate(OmegaConf.load(CONF / "objective" / f"{objective}.yaml"))
    steps = [step_instance(make_snapshot(9, seed), aim) for seed in range(3)]
    assert any(step.weights.sum() > step.capacity for step in steps)
    assert any(enumerate_optimum(step) > 0.0 for step in steps)
