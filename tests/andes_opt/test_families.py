"""Instance families: valid, reproducible, and as hard as their description says."""

from __future__ import annotations

import numpy as np
import pytest

from andes_opt import families
from andes_opt.instance import Instance


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("n", [0, 1, 2, 37])
def test_instances_are_valid(family: str, n: int) -> None:
    """Every family makes an instance of any size, with gains for every batch size."""
    instance = families.make(family, n, 5)
    assert isinstance(instance, Instance)
    assert instance.num_requests == n
    table = instance.gain_table(instance.min_batch, instance.max_batch)
    assert table.shape == (instance.max_batch - instance.min_batch + 1, n)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_same_seed_same_instance(family: str) -> None:
    """Equal arguments give equal instances, another seed another one."""
    one, two, other = (families.make(family, 30, seed) for seed in (1, 1, 2))
    assert one.capacity == two.capacity
    assert (one.weights == two.weights).all()
    assert (one.gains_at(one.min_batch) == two.gains_at(two.min_batch)).all()
    assert (
        one.capacity != other.capacity
        or (one.gains_at(one.min_batch) != other.gains_at(other.min_batch)).any()
    )


def test_a_seed_never_changes_its_instance() -> None:
    """Numbers of one instance are pinned, so that published results can be repeated."""
    instance = families.make("negative", 5, 0)
    assert instance.weights.tolist() == [83, 73, 44, 202, 914]
    assert instance.capacity == 401
    assert instance.gains_at(0)[0] == pytest.approx(0.45839266, abs=1e-8)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_monotone_unless_said(family: str) -> None:
    """Only the family that says so has gains that rise with the batch size."""
    flags = {families.make(family, 40, seed).gains.monotone for seed in range(3)}
    assert flags == {family != "not_monotone"}


@pytest.mark.parametrize("seed", range(5))
def test_compute_and_memory_bind_in_the_hard_family(seed: int) -> None:
    """Memory fits 20-45 % of the context, and the best batch is limited by speed as well."""
    instance = families.make("hard", 300, seed)
    total = instance.weights.sum()
    assert 0.19 * total < instance.capacity <= 0.45 * total
    rates = 1.0 / instance.gains.scalars[0], np.max(instance.gains.state[5])
    # An empty engine is faster than any reader, a full one slower than most.
    assert rates[0] > rates[1]
    full = instance.gains_at(instance.max_batch).sum()
    assert full < 0.95 * instance.gains_at(1).sum()


def test_adversarial_families_keep_their_limits() -> None:
    """Up to 200 requests, weights stay within 20,000 and capacity within 200,001."""
    for family in families.ADVERSARIAL:
        for seed in range(5):
            instance = families.make(family, 200, seed)
            assert instance.weights.max() <= 20_000
            assert instance.capacity <= 200_001


def test_unknown_family_is_refused() -> None:
    """The sentence names the value and the choices."""
    with pytest.raises(ValueError, match=r"family = 'soft' not understood: need one of hard"):
        families.make("soft", 3, 0)


@pytest.mark.parametrize(("n", "seed"), [(-1, 0), (1, -1)])
def test_negative_numbers_are_refused(n: int, seed: int) -> None:
    """Sizes and seeds start at 0."""
    with pytest.raises(ValueError, match=r"= -1 not understood: need a whole number >= 0\."):
        families.make("hard", n, seed)
