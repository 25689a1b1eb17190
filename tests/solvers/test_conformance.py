"""Every solver in conf/solver/ keeps the contract; andes_opt.testing says what that means."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from andes_opt.plan import TOLERANCE, TOLERANCE_MIP
from andes_opt.testing import CHECKS

FOLDER = Path(__file__).parents[2] / "conf" / "solver"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}

#: The solvers that the documents name, all of which must have a file.
NAMES = {
    "brute_force",
    "greedy",
    "greedy_skip",
    "local_search",
    "released_code",
    "price_rounding",
    "exact",
    "dp",
    "dp_blocks",
    "dp_torch",
    "cp_sat",
    "mip_scip",
    "lp_rounding",
    "knapsack_ortools",
    "pulp_cbc",
    "pulp_highs",
    "highs",
}
NEED_TORCH = {"dp_torch"}
MIP_BACK_ENDS = {"mip_scip", "pulp_cbc", "pulp_highs", "highs"}

#: What a check is told about a solver that is made for tiny instances.
TINY = {"brute_force": 18}


def solvers():
    """Names of the registry, those that need PyTorch marked so."""
    return [
        pytest.param(name, marks=pytest.mark.torch) if name in NEED_TORCH else name
        for name in FILES
    ]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", solvers())
def test_conformance(name, check):
    """A solver made from its file passes the check."""
    options = {}
    parameters = inspect.signature(CHECKS[check]).parameters
    if "tolerance" in parameters:
        options["tolerance"] = TOLERANCE_MIP if name in MIP_BACK_ENDS else TOLERANCE
    if "num_requests" in parameters and name in TINY:
        options["num_requests"] = TINY[name]
    config = OmegaConf.load(FILES[name])
    CHECKS[check](functools.partial(instantiate, config), **options)


def test_registry_is_complete():
    """Every solver that the design names has a file, and no file is without a name."""
    assert set(FILES) == NAMES


@pytest.mark.parametrize("name", FILES)
def test_file_documents_the_constructor(name):
    """A file opens with one line on the solver and sets every option to its default."""
    text = FILES[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    config = OmegaConf.to_container(OmegaConf.load(FILES[name]))
    solver_class = get_class(config.pop("_target_"))
    parameters = inspect.signature(solver_class).parameters
    assert config == {option: parameter.default for option, parameter in parameters.items()}
    for line in text.splitlines()[2:]:
        assert "#" in line, f"{line!r} lacks a comment"
    assert solver_class.__doc__
