"""Instances and gain tables: what they accept, refuse, and keep on disk."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_opt.instance import GainModel, GainTable, Instance

if TYPE_CHECKING:
    from pathlib import Path


def small(**changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "weights": [30, 20, 10],
        "capacity": 40,
        "min_batch": 1,
        "max_batch": 2,
        "gains": GainTable([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]], first_batch=1),
    }
    return Instance(**(fields | changes))


class Square:
    """A gain model in four lines, as anybody might write one."""

    monotone = False
    concave_in_rate = False

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def __call__(self, batch_size: int) -> Any:
        return np.full(3, float(batch_size**2)) if self.answer is None else self.answer

    def table(self, first: int, last: int) -> Any:
        rows = [self(batch) for batch in range(first, last + 1)]
        return np.array(rows) if self.answer is None else self.answer


def reference_instances(folder: Path) -> list[tuple[dict[str, Any], Instance]]:
    found = []
    for item in json.loads((folder / "instances.json").read_text()):
        instance = Instance(
            weights=item["weights"],
            capacity=item["capacity"],
            min_batch=item["min_batch"],
            max_batch=item["max_batch"],
            gains=GainTable(item["values"], item["first_batch"]),
            exactly=item["exactly"],
        )
        found.append((item, instance))
    return found


def enumerated_optimum(instance: Instance) -> float | None:
    """The optimum by the words of the definition; None if no batch size is feasible."""
    best: float | None = None
    for batch in range(instance.min_batch, instance.max_batch + 1):
        gains = instance.gains_at(batch)
        for count in range(min(batch, instance.num_requests) + 1):
            if instance.exactly and count != batch:
                continue
            for chosen in map(list, combinations(range(instance.num_requests), count)):
                if instance.weights[chosen].sum() <= instance.capacity:
                    value = float(gains[chosen].sum())
                    best = value if best is None else max(best, value)
    return best


def test_reference_optima(reference: Path) -> None:
    """Enumeration of every reference instance finds the optimum that is written beside it."""
    instances = reference_instances(reference)
    assert len(instances) >= 10
    for item, instance in instances:
        optimum = enumerated_optimum(instance)
        assert optimum == pytest.approx(item["optimum"], abs=1e-9), item["name"]


def test_instance_holds_its_numbers() -> None:
    """Weights become int64 and read-only, scalars plain Python numbers."""
    instance = small(capacity=np.int64(40), min_batch=np.int32(1), exactly=np.bool_(True))
    assert instance.weights.dtype == np.int64
    assert (instance.weights == [30, 20, 10]).all()
    assert (instance.capacity, instance.min_batch, instance.max_batch) == (40, 1, 2)
    assert {type(instance.capacity), type(instance.min_batch)} == {int}
    assert instance.exactly is True
    assert instance.num_requests == 3
    assert (instance.gains_at(2) == [2.0, 2.0, 1.0]).all()
    with pytest.raises(ValueError, match="read-only"):
        instance.weights[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        instance.capacity = 3  # type: ignore[misc]


def test_instance_does_not_share_the_callers_arrays() -> None:
    """Changing an array after construction changes no instance and no table."""
    weights = np.array([30, 20, 10])
    values = np.ones((2, 3))
    instance = small(weights=weights, gains=GainTable(values, 1))
    weights[0], values[0, 0] = 1, 9.0
    assert instance.weights[0] == 30
    assert instance.gains_at(1)[0] == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": [[30, 20, 10]]}, r"weights of shape \(1, 3\)"),
        ({"weights": [30.0, 20.0, 10.0]}, "must be integers, not float64"),
        ({"weights": [30, 0, 10]}, "the smallest is 0"),
        ({"weights": np.array([30, 20, 2**63], np.uint64)}, "the largest is 9223372036854775808"),
        ({"weights": [2**61, 2**61, 2**61]}, r"must sum to 2\*\*62 at most"),
        ({"capacity": -1}, "capacity = -1 not understood"),
        ({"capacity": 40.5}, "capacity = 40.5 not understood"),
        ({"capacity": math.nan}, "capacity = nan not understood"),
        ({"capacity": math.inf}, "capacity = inf not understood"),
        ({"capacity": None}, "capacity = None not understood"),
        ({"min_batch": -1}, "min_batch = -1 not understood"),
        ({"min_batch": 1.5}, "min_batch = 1.5 not understood"),
        ({"max_batch": 1.5}, "max_batch = 1.5 not understood"),
        ({"max_batch": "2"}, "max_batch = '2' not understood"),
        ({"gains": None}, "gains of type NoneType"),
        ({"gains": np.ones((2, 3))}, "gains of type ndarray"),
        ({"min_batch": 3}, r"batch range \[3, 2\]"),
        ({"min_batch": 0}, "covers batch sizes 1 to 2, not 0 to 2"),
        ({"max_batch": 3}, "covers batch sizes 1 to 2, not 1 to 3"),
        ({"weights": [30, 20]}, "3 columns for 2 requests"),
    ],
)
def test_instance_refuses(changes: dict[str, Any], sentence: str) -> None:
    """Wrong shapes, weights, ranges and tables are refused in a sentence with the value."""
    with pytest.raises(ValueError, match=sentence):
        small(**changes)


def test_instance_of_nobody() -> None:
    """No request is a valid instance, whatever type an empty list of weights has."""
    instance = Instance([], 40, 0, 0, GainTable(np.empty((1, 0))))
    assert instance.num_requests == 0
    assert instance.weights.dtype == np.int64


def test_any_capacity_fits() -> None:
    """A capacity beyond what compiled code counts with is as good as the most that it can."""
    assert small(capacity=2**70).capacity == 2**62


def test_max_batch_may_exceed_the_number_of_requests() -> None:
    """An engine's limit of 256 is fine for three requests."""
    instance = small(max_batch=256, gains=GainTable(np.ones((256, 3)), 1))
    assert instance.gain_table(1, 256).shape == (256, 3)


def test_a_callables_output_is_checked_at_each_call() -> None:
    """A gain model of any make is accepted; what it returns is checked when it is asked."""
    instance = small(gains=Square())
    assert isinstance(instance.gains, GainModel)
    assert (instance.gains_at(2) == 4.0).all()
    assert (instance.gain_table(1, 2) == [[1.0] * 3, [4.0] * 3]).all()
    for answer, sentence in [
        (np.ones(2), r"shape \(2,\) at batch size 1, not \(3,\)"),
        (np.array([1.0, np.nan, 0.0]), "NaN or infinity at batch size 1"),
        (np.array([1.0, np.inf, 0.0]), "NaN or infinity at batch size 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            small(gains=Square(answer)).gains_at(1)
    with pytest.raises(ValueError, match=r"for batch sizes 1 to 2, not \(2, 3\)"):
        small(gains=Square(np.ones((3, 3)))).gain_table(1, 2)


def test_gain_table_rows_start_at_first_batch() -> None:
    """Row r is batch size first_batch + r, by call and by range; there is nothing beyond."""
    table = GainTable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], first_batch=4)
    assert (table(5) == [3.0, 4.0]).all()
    assert (table.table(5, 6) == [[3.0, 4.0], [5.0, 6.0]]).all()
    assert table.last_batch == 6
    for batch in (3, 7):
        with pytest.raises(IndexError, match="outside the table's 4 to 6"):
            table(batch)
    with pytest.raises(ValueError, match="read-only"):
        table(5)[0] = 0.0


@pytest.mark.parametrize(
    ("values", "first", "sentence"),
    [
        ([1.0, 2.0], 0, r"shape \(2,\)"),
        (np.empty((0, 3)), 0, r"shape \(0, 3\)"),
        ([[1.0, np.nan]], 0, "finite"),
        ([[1.0, -np.inf]], 0, "finite"),
        ([[1.0]], -1, "first_batch = -1"),
        ([[1.0]], 1.5, "first_batch = 1.5"),
        ([[1.0]], None, "first_batch = None"),
        ([["a"]], 0, "gain values not understood"),
        ([[1j]], 0, "gain values not understood"),
        ([[1.0, 2.0], [1.0]], 0, "gain values not understood"),
    ],
)
def test_gain_table_refuses(values: Any, first: int, sentence: str) -> None:
    """A table that is not (k >= 1, n) and finite, or starts below 0, is refused."""
    with pytest.raises(ValueError, match=sentence):
        GainTable(values, first)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=5))
def test_gain_table_knows_whether_it_is_monotone(rows: list[list[int]]) -> None:
    """monotone exactly if no gain rises from one batch size to any larger one."""
    pairs = combinations(range(len(rows)), 2)
    falls = all(rows[b][i] <= rows[a][i] for a, b in pairs for i in range(2))
    assert GainTable(rows).monotone is falls


def test_npz_round_trip(reference: Path, tmp_path: Path) -> None:
    """Every reference instance comes back from its file with the same numbers."""
    for number, (_, instance) in enumerate(reference_instances(reference)):
        path = tmp_path / f"{number}.npz"
        instance.save(path)
        copy = Instance.load(path)
        for name in ("capacity", "min_batch", "max_batch", "exactly"):
            assert getattr(copy, name) == getattr(instance, name)
        assert (copy.weights == instance.weights).all()
        first, last = instance.min_batch, instance.max_batch
        assert (copy.gain_table(first, last) == instance.gain_table(first, last)).all()
    assert not list(tmp_path.glob("*.partial"))


def test_npz_keys(tmp_path: Path) -> None:
    """The file has the documented keys, so that others can write one; any model is saved."""
    path = tmp_path / "square.npz"
    small(gains=Square()).save(path)
    with np.load(path) as data:
        assert sorted(data) == sorted(
            ["weights", "capacity", "min_batch", "max_batch", "exactly", "values", "first_batch"]
        )
        assert (data["values"] == [[1.0] * 3, [4.0] * 3]).all()
        assert data["first_batch"] == 1


def test_load_names_the_file(tmp_path: Path) -> None:
    """A file that is no .npz, lacks a key or holds nonsense is refused by name."""
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    lacking = tmp_path / "lacking.npz"
    np.savez(lacking, weights=np.array([1]))
    wrong = tmp_path / "wrong.npz"
    small().save(wrong)
    with np.load(wrong) as data:
        numbers = dict(data)
    np.savez(wrong, **(numbers | {"capacity": -4}))
    for path, sentence in [
        (text, r"it is no \.npz file"),
        (lacking, "lacks capacity"),
        (wrong, "capacity = -4 not"),
    ]:
        with pytest.raises(ValueError, match=rf"{path.name} holds no instance: .*{sentence}"):
            Instance.load(path)
    with pytest.raises(FileNotFoundError):
        Instance.load(tmp_path / "missing.npz")


def test_load_takes_scalars_of_any_shape(tmp_path: Path) -> None:
    """Files of another make may hold their numbers as arrays of one element."""
    path = tmp_path / "other.npz"
    small().save(path)
    with np.load(path) as data:
        numbers = dict(data)
    scalars = ("capacity", "min_batch", "max_batch", "exactly", "first_batch")
    np.savez(path, **(numbers | {name: np.array([numbers[name]]) for name in scalars}))
    loaded = Instance.load(path)
    assert (loaded.capacity, loaded.min_batch, loaded.max_batch) == (40, 1, 2)
    assert loaded.exactly is False
