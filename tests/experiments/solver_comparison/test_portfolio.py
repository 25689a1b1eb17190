"""`andes-opt study portfolio`: who is asked what, resuming, tables, figures."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from andes_opt import families
from andes_opt.plan import make_plan
from experiments.configuration.compose import load
from experiments.solver_comparison import compare, groups, portfolio, profiles, tables
from experiments.solver_comparison.answers import AnswerStore
from experiments.solver_comparison.entrants import Entrant, entrants_of
from experiments.solver_comparison.instances import NamedInstance
from experiments.solver_comparison.portfolio import Asker, give_up

#: Small enough for seconds, with each part of the document: two sizes, a refusal, a
#: simulated load under pressure, one batch size alone.
TINY = (
    "solvers=[greedy,exact,brute_force]",
    "families=[hard,subset_sum]",
    "sizes=[8,16,24]",
    "count=1",
    "capture=3",
    "workload.requests=60",
    "portfolio.more=1",
    "portfolio.captured=[{engine: kv_12k, rate: 8.0}]",
    "portfolio.one_batch.requests=24",
    "portfolio.one_batch.count=2",
    "portfolio.shown.panels=[8,24]",
    "portfolio.shown.requests=16",
    "portfolio.shown.fit_from=8",
)


class Spy:
    """Serves nobody, and writes down when it was asked."""

    exact = False

    def __init__(self, name, log, error=None):
        self.name, self.log, self.error = name, log, error

    def solve(self, instance, *, time_limit_s=None):
        self.log.append(self.name)
        if self.error is not None:
            raise self.error
        return make_plan(instance, np.zeros(instance.num_requests, bool), instance.min_batch)


def spies(log, *names, state="s"):
    """Entrants that log their calls."""
    return [Entrant(name, Spy(name, log), state) for name in names]


def group(size=6, core=2, count=2):
    """Instances of one family and size."""
    return groups.Group(
        groups.FAMILY,
        "hard",
        size,
        core,
        count,
        lambda k: NamedInstance("hard", f"{size}-{k}", families.make("hard", size, k)),
    )


def test_every_second_instance_is_asked_in_reverse(tmp_path):
    """Each solver is warmed up once per source, and the order alternates."""
    log = []
    study = Asker(AnswerStore(tmp_path / "cells.jsonl"), 1.0, 1)
    study.ask(group(count=3), range(3), spies(log, "a", "b"), core=True)
    assert log == ["a", "a", "b", "b", "b", "a", "a", "b"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    """What was answered is not asked again; the call that was cut short is."""
    path, log = tmp_path / "cells.jsonl", []
    first, second = spies(log, "a", "b")
    second.solver.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), [first, second], core=True)
    second.solver.error = None
    log.clear()
    cells = AnswerStore(path)
    study = Asker(cells, 1.0, 1)
    study.ask(group(), range(2), [first, second], core=True)
    assert log == ["b", "b", "b", "a", "a"]  # a warm-up each, then what was missing
    assert cells.reused == 1
    assert len(study.answers) == 4


def test_a_torn_line_is_dropped_and_the_rest_kept(tmp_path):
    """A run killed while it wrote loses that answer only, and later ones are readable."""
    path, log = tmp_path / "cells.jsonl", []
    Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), spies(log, "a"), core=True)
    path.write_bytes(path.read_bytes()[:-40])
    log.clear()
    Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), spies(log, "a"), core=True)
    assert log == ["a", "a"]  # the warm-up and one call
    log.clear()
    Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), spies(log, "a"), core=True)
    assert log == []


def test_answers_of_another_state_are_made_again(tmp_path):
    """Other code, options or instances under the same name do not count."""
    path, log = tmp_path / "cells.jsonl", []
    Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), spies(log, "a"), core=True)
    log.clear()
    Asker(AnswerStore(path), 1.0, 1).ask(group(), range(2), spies(log, "a", state="t"), core=True)
    assert log == ["a", "a", "a"]
    other = groups.Group(
        groups.FAMILY,
        "hard",
        6,
        2,
        2,
        lambda k: NamedInstance("hard", f"6-{k}", families.make("hard", 6, k + 10)),
    )
    log.clear()
    Asker(AnswerStore(path), 1.0, 1).ask(other, range(2), spies(log, "a", state="t"), core=True)
    assert log == ["a", "a", "a"]


def test_a_failing_back_end_does_not_stop_the_others(tmp_path):
    """A crash is a row with the error's text; an answer that verify refuses is fatal."""
    log = []
    broken, fine = spies(log, "broken", "fine")
    broken.solver.error = RuntimeError("lost its mind")
    study = Asker(AnswerStore(tmp_path / "cells.jsonl"), 1.0, 1)
    found = study.ask(group(), range(2), [broken, fine], core=True)
    assert [cell["status"] for cell in found["broken"]] == ["failed", "failed"]
    assert "lost its mind" in found["broken"][0]["note"]
    assert [cell["status"] for cell in found["fine"]] == ["feasible", "feasible"]


def test_solvers_that_fail_on_a_whole_size_are_asked_for_no_larger(tmp_path):
    """A refusal of all core instances ends a solver's part in that family."""
    log = []
    entrants = spies(log, "small", "fine")
    entrants[0].solver.error = ValueError("6 requests are too many.")
    config = load("quality", ["experiment=portfolio", *TINY])
    study = Asker(AnswerStore(tmp_path / "cells.jsonl"), 1.0, 1)
    groups = [group(6, 2, 4), group(7, 2, 4)]
    stops = portfolio.run_groups(study, groups, entrants, config)
    assert [(stop.solver, stop.size) for stop in stops] == [("small", 6)]
    asked = [(cell["solver"], cell["instance"]) for cell in study.answers]
    assert ("small", "6-1") in asked
    assert not [name for name, instance in asked if name == "small" and instance[0] == "7"]
    assert not cell_of(study, "small", "6-2")  # who is not fast gets the core only
    assert cell_of(study, "fine", "7-3")


def cell_of(study, solver, instance):
    """The answers of one solver to one instance."""
    return [c for c in study.answers if (c["solver"], c["instance"]) == (solver, instance)]


@pytest.mark.parametrize(
    ("walls", "certified", "stops"),
    [
        ((1.0, 0.95), (False, False), True),
        ((1.0, 0.5), (False, False), False),
        ((1.0, 1.0), (True, False), False),
        ((), (), False),
    ],
)
def test_the_stop_rule(walls, certified, stops):
    """Only if all calls end at the limit without proof is nothing larger asked."""
    cells = [
        {"status": "feasible", "wall_s": wall, "time_limit_s": 1.0, "certified": proven}
        for wall, proven in zip(walls, certified, strict=True)
    ]
    assert (give_up(cells) == "limit hit on all instances") == stops


def test_references_are_certified_values_or_the_best_bound():
    """Gaps are to the optimum where somebody proved it, else to the lowest bound."""
    known = {"source": "a", "instance": "1", "value": 5.0, "bound": 5.0, "certified": True}
    worse = {"source": "a", "instance": "1", "value": 4.0, "bound": math.inf, "certified": False}
    open_ = {"source": "a", "instance": "2", "value": 4.0, "bound": 8.0, "certified": False}
    rows = compare.with_references([known, worse, open_])
    assert [row["gap_percent"] for row in rows] == [0.0, pytest.approx(20), pytest.approx(50)]
    assert [row["reference_certified"] for row in rows] == [True, True, False]


def test_profile_ratios_by_hand():
    """Times in units of the best on each problem; a problem that nobody solves counts for none."""
    times = np.array([[1.0, 2.0], [4.0, 2.0], [np.inf, 3.0], [np.inf, np.inf]])
    expected = np.array([[1.0, 2.0], [2.0, 1.0], [np.inf, 1.0], [np.inf, np.inf]])
    np.testing.assert_array_equal(profiles.ratios(times), expected)


def test_the_time_matrix_fills_in_who_was_not_asked():
    """Not asked and not solved are both infinite; who never solves anything has no column."""
    rows = pl.DataFrame(
        {
            "source": ["x"] * 4,
            "instance": ["1", "1", "2", "1"],
            "solver": ["a", "b", "a", "never"],
            "wall_s": [1.0, 2.0, 3.0, 4.0],
            "certified": [True, True, True, False],
        }
    )
    names, times = profiles.time_matrix(rows, pl.col("certified"))
    assert names == ["a", "b"]
    np.testing.assert_array_equal(times, [[1.0, 2.0], [3.0, np.inf]])


def test_exponents_are_found_with_their_intervals():
    """Noise around N^1.5 gives an interval around 1.5; two sizes give none."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([100, 200, 400, 800], 10)
    times = 1e-6 * sizes**1.5 * np.exp(0.1 * rng.standard_normal(sizes.size))
    fit = profiles.fit_exponent(sizes.tolist(), times.tolist())
    assert fit.low < 1.5 < fit.high
    assert fit.high - fit.low < 0.2
    assert profiles.fit_exponent([1, 1, 2], [1.0, 1.0, 2.0]) is None


def test_sizes_at_the_limit_do_not_count_for_the_exponent():
    """A time that was cut off says nothing about growth."""
    sizes = [100, 200, 400, 800]
    rows = pl.DataFrame(
        {
            "solver": ["a"] * 4,
            "requests": sizes,
            "wall_s": [1.0, 2.0, 4.0, 4.0],
            "at_limit": [False, False, False, True],
        }
    )
    fit = profiles.exponents(rows, 100)["a"]
    assert (fit.value, fit.last) == (pytest.approx(1.0), 400)
    assert profiles.exponents(rows, 200) == {}


def test_one_batch_ratios_compare_solving_alone_with_the_whole_call():
    """Building and our own bounds don't count for the back-end, everything does for exact."""
    common = {"instance": "1", "certified": True, "at_limit": False}
    rows = pl.DataFrame(
        [
            common
            | {
                "kind": "family",
                "source": "hard",
                "solver": "exact",
                "wall_s": 0.01,
                "backend_s": 0.009,
            },
            common
            | {
                "kind": "one batch size",
                "source": "hard, one B",
                "solver": "x",
                "wall_s": 3.0,
                "backend_s": 2.0,
            },
        ]
    )
    assert tables.one_batch(rows, "hard")["ratio"].to_list() == [pytest.approx(200)]


def test_fixing_the_batch_size_keeps_that_batch_sizes_optimum():
    """At its best batch size the instance with that size alone has the same optimum."""
    exact = compare.build_solvers(["exact"])["exact"]
    instance = families.make("hard", 30, 1)
    plan = exact.solve(instance)
    alone = exact.solve(groups.fix_batch_size(instance, plan.batch_size))
    assert alone.value == pytest.approx(plan.value, rel=1e-12)
    assert alone.batch_size == plan.batch_size


def test_the_whole_command_and_its_second_run(run, tmp_path, capsys):
    """Rows, tables, document and figures; a second run reuses every answer."""
    folder, summary = run("study portfolio", *TINY, "portfolio.docs=docs")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    figures = {"solvers_profile.png", "solvers_gap_vs_time.png", "solvers_time.png"}
    files = {"rows.parquet", "table.csv", "solvers.md", "cells.jsonl", "summary.json", "env.json"}
    assert names == figures | files
    assert summary["reused"] == summary["contradictions"] == summary["failed"] == 0
    assert summary["greedy_time_ratio_all_b"] > 0
    assert summary["cp_sat, presolve on_time_ratio_one_b"] > 0
    assert "exact_exponent" in summary

    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.height == summary["calls"]
    assert rows.filter(pl.col("solver") == "exact")["certified"].all()
    captured = rows.filter(pl.col("source") == "kv_12k at 8.0/s")
    assert captured.filter("core")["instance"].n_unique() == 1
    refused = rows.filter(pl.col("status") == "refused")
    assert set(refused["solver"]) == {"brute_force"}
    alone = rows.filter(pl.col("source") == "hard, one B")
    assert alone.height == 2 * 5
    assert (alone["min_batch"] == alone["max_batch"]).all()

    text = (tmp_path / "docs" / "results" / "solvers.md").read_text()
    assert "`andes-opt study portfolio 'solvers=[greedy,exact,brute_force]'" in text
    assert str(json.loads((folder / "env.json").read_text())["cpu"]) in text
    for heading in ("One batch size", "All batch sizes", "hard, by size", "Families at N = 16"):
        assert f"## {heading}" in text
    assert "too many for brute force" in text
    for figure in figures:
        assert f"(../figures/{figure})" in text
        assert (tmp_path / "docs" / "figures" / figure).read_bytes().startswith(b"\x89PNG")

    _, again = run("study portfolio", *TINY, "portfolio.docs=null")
    assert again["reused"] == again["calls"] == summary["calls"]
    assert again["calls_s"] == summary["calls_s"]


def test_all_solvers_means_all_that_can_be_built(monkeypatch):
    """With solvers=null each file of conf/solver enters; one without its back-end is named."""
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    entrants, missing = entrants_of(load("quality", ["experiment=portfolio"]), "state")
    names = [entrant.name for entrant in entrants]
    assert {"exact", "greedy", "cp_sat", "pulp_cbc", "highs"} <= set(names)
    assert set(missing) == {"dp_torch"}
    assert "pip install 'torch>=2.4'" in missing["dp_torch"]
