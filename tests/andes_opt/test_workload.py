"""Requests and arrival processes, and the files of conf/workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

import conf
from andes_opt.lengths import FixedLengths, TableLengths
from andes_opt.readers import Mixture, fixed, reading, speaking
from andes_opt.trace import Trace
from andes_opt.workload import Gamma, Poisson, Requests, Surge, Workload

CONF = Path(conf.__file__).resolve().parent
FIELDS = ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tds")
SEEDS = st.integers(0, 2**32)


def load(*overrides: str) -> Any:
    """The workload that a command line makes."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=list(overrides)).workload)


def columns(**changes: Any) -> dict[str, Any]:
    """Columns of three good requests, with changes."""
    good: dict[str, Any] = {
        "arrival_s": [0.0, 0.5, 0.5],
        "prompt_tokens": [1, 20, 300],
        "output_tokens": [1, 2, 3],
        "ttft_s": [0.0, 1.0, 2.0],
        "tds": [4.0, 5.0, 6.0],
    }
    return {name: np.array(values) for name, values in (good | changes).items()}


# --- Requests


def test_requests_are_typed_copies_that_cannot_be_written() -> None:
    """Arrays come out as float64 and int64, detached from the caller's."""
    given = columns(prompt_tokens=np.array([1, 20, 300], dtype=np.int32))
    requests = Requests(**given)
    given["tds"][0] = 99
    assert requests.num_requests == 3
    assert requests.tds[0] == 4
    for name in FIELDS:
        array = getattr(requests, name)
        assert array.dtype == (np.int64 if name.endswith("_tokens") else np.float64)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_no_requests_are_requests() -> None:
    """Empty arrays are fine; engines must cope."""
    assert Requests(**{name: np.array([]) for name in FIELDS}).num_requests == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrival_s": [[0.0]]}, r"arrival_s of shape \(1, 1\) not understood"),
        ({"tds": [1.0]}, r"tds has shape \(1,\), arrival_s \(3,\)"),
        ({"arrival_s": [-0.1, 0.5, 0.5]}, "arrival_s must be a number >= 0; request 0 has -0.1"),
        ({"arrival_s": [0.0, 2.0, 1.0]}, "must not fall; request 2 arrives before"),
        ({"arrival_s": [0.0, np.nan, 1.0]}, "arrival_s must be .*; request 1 has nan"),
        ({"prompt_tokens": [1, 0, 3]}, "prompt_tokens must be >= 1; request 1 has 0"),
        ({"prompt_tokens": [1.0, 2.0, 3.0]}, "prompt_tokens must be integers, not float64"),
        ({"output_tokens": [1, 2, -3]}, "output_tokens must be >= 1; request 2 has -3"),
        ({"ttft_s": [0.0, -1.0, 0.0]}, "ttft_s must be a number >= 0; request 1 has -1.0"),
        ({"ttft_s": [0.0, np.inf, 0.0]}, "ttft_s must be .*; request 1 has inf"),
        ({"tds": [1.0, 0.0, 1.0]}, "tds must be a number > 0; request 1 has 0.0"),
        ({"tds": [1.0, 1.0, np.inf]}, "tds must be a number > 0; request 2 has inf"),
    ],
)
def test_requests_refuse(change: dict[str, Any], words: str) -> None:
    """One sentence names the array, the first bad request and its value."""
    with pytest.raises(ValueError, match=words):
        Requests(**columns(**change))


# --- Arrival processes

PROCESSES = (
    Poisson(rate=4.0, requests=60),
    Gamma(rate=4.0, requests=60, cv=3.0),
    Gamma(rate=4.0, requests=60, cv=0.3),
    Surge(rate=4.0, requests=60, period_s=5.0),
    Surge(rate=4.0, requests=60, period_s=5.0, intensity=4.0, duty=0.25),
)


@pytest.mark.parametrize("workload", PROCESSES, ids=lambda w: type(w).__name__)
@settings(max_examples=15)
@given(seed=SEEDS)
def test_the_same_seed_gives_the_same_requests(workload: Workload, seed: int) -> None:
    """Runs repeat; another seed gives other arrivals; the first request arrives at 0."""
    assert isinstance(workload, Workload)
    first, again, other = (workload.generate(s) for s in (seed, seed, seed + 1))
    assert first.num_requests == 60
    assert first.arrival_s[0] == 0
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.arrival_s, other.arrival_s)


@pytest.mark.parametrize("make", [Poisson, Gamma])
@settings(max_examples=15)
@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_another_rate_keeps_requests_and_scales_gaps(make: Any, seed: int, factor: float) -> None:
    """Request k keeps lengths and reader at any rate; the gaps scale as one."""
    slow = make(rate=1.0, requests=50).generate(seed)
    fast = make(rate=factor, requests=50).generate(seed)
    np.testing.assert_allclose(fast.arrival_s * factor, slow.arrival_s, rtol=1e-12)
    for name in FIELDS[1:]:
        np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))


@settings(max_examples=15)
@given(seed=SEEDS)
def test_runs_are_paired_across_everything_else(seed: int) -> None:
    """Changing one thing leaves the others: process, lengths, readers, number of requests."""
    base = Poisson(rate=2.0, requests=40).generate(seed)
    longer = Poisson(rate=2.0, requests=70).generate(seed)
    bursty = Gamma(rate=2.0, requests=40).generate(seed)
    surging = Surge(rate=3.0, requests=40).generate(seed)
    short = Poisson(rate=2.0, requests=40, lengths=FixedLengths(9, 9)).generate(seed)
    heard = Poisson(rate=2.0, requests=40, readers=speaking()).generate(seed)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(longer, name)[:40], getattr(base, name))
    for name in FIELDS[1:]:
        np.testing.assert_array_equal(getattr(bursty, name), getattr(base, name))
        np.testing.assert_array_equal(getattr(surging, name), getattr(base, name))
    for name in ("arrival_s", "ttft_s", "tds"):
        np.testing.assert_array_equal(getattr(short, name), getattr(base, name))
    for name in FIELDS[:3]:
        np.testing.assert_array_equal(getattr(heard, name), getattr(base, name))


@pytest.mark.parametrize(("cv", "tolerance"), [(0.5, 0.03), (1.0, 0.03), (3.0, 0.1)])
def test_gamma_gaps_have_the_rate_and_variation_asked_for(cv: float, tolerance: float) -> None:
    """Mean and coefficient of variation of 20,000 gaps."""
    gaps = np.diff(Gamma(rate=5.0, requests=20_000, cv=cv).generate(0).arrival_s)
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=tolerance)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=tolerance)


def test_poisson_gaps_are_exponential() -> None:
    """20,000 gaps have rate, variation and memorylessness of a Poisson process."""
    gaps = np.diff(Poisson(rate=5.0, requests=20_000).generate(0).arrival_s)
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert (gaps > 0.2).mean() == pytest.approx(np.exp(-1), abs=0.01)


@pytest.mark.parametrize(("intensity", "duty"), [(1.5, 0.35), (2.5, 0.35), (1.0, 0.5), (4.0, 0.25)])
def test_surges_have_their_rate_and_keep_the_mean(intensity: float, duty: float) -> None:
    """Arrivals per second over all, in surges and in calm phases, are as documented."""
    period_s = 100.0
    surge = Surge(10.0, 40_000, intensity, duty, period_s)
    # Without a calm rate the first arrival, which is at 0 by contract, opens a surge.
    shift_s = (1 - duty) * period_s if intensity * duty == 1 else 0.0
    arrival_s = surge.generate(0).arrival_s + shift_s
    whole = np.floor(arrival_s[-1] / period_s) * period_s
    phase = arrival_s[arrival_s < whole] % period_s
    calm_s = (1 - duty) * period_s
    periods = whole / period_s
    calm_rate = 10.0 * (1 - duty * intensity) / (1 - duty)
    assert phase.size / whole == pytest.approx(10.0, rel=0.03)
    surge_rate = (phase >= calm_s).sum() / (periods * duty * period_s)
    assert surge_rate == pytest.approx(10.0 * intensity, rel=0.03)
    assert (phase < calm_s).sum() / (periods * calm_s) == pytest.approx(
        calm_rate, rel=0.05, abs=0.01
    )


def test_a_surge_of_intensity_one_is_poisson() -> None:
    """With the same rate in both phases nothing is left of them."""
    surge = Surge(rate=4.0, requests=500, intensity=1.0).generate(3)
    poisson = Poisson(rate=4.0, requests=500).generate(3)
    np.testing.assert_allclose(surge.arrival_s, poisson.arrival_s, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Poisson(rate=0, requests=5), "rate = 0 not understood: need a number > 0"),
        (lambda: Poisson(rate="fast", requests=5), "rate = 'fast' not understood"),  # type: ignore[arg-type]
        (lambda: Poisson(rate=1, requests=0), "requests = 0 not understood"),
        (lambda: Gamma(rate=-1, requests=5), "rate = -1 not understood"),
        (lambda: Gamma(rate=1, requests=5, cv=0), "cv = 0 not understood"),
        (lambda: Surge(rate=1, requests=5, duty=0), "duty = 0 not understood"),
        (lambda: Surge(rate=1, requests=5, duty=1), "duty = 1 not understood"),
        (lambda: Surge(rate=1, requests=5, intensity=0.5), "intensity = 0.5 not understood"),
        (lambda: Surge(rate=1, requests=5, intensity=3), "need 1 <= intensity <= 1 / duty = 2.857"),
        (lambda: Surge(rate=1, requests=5, period_s=0), "period_s = 0 not understood"),
        (lambda: Poisson(rate=1, requests=5).generate(-1), "seed = -1 not understood"),
    ],
)
def test_processes_refuse_numbers_out_of_range(make: Any, words: str) -> None:
    """A bad option is refused by name and value."""
    with pytest.raises(ValueError, match=words):
        make()


def test_the_defaults_of_python_and_yaml_agree() -> None:
    """``Poisson(rate, requests)`` is ``workload=poisson``."""
    assert load("+workload=poisson") == Poisson(rate=4.0, requests=500)
    assert load("+workload=gamma") == Gamma(rate=4.0, requests=500)
    assert load("+workload=surge") == Surge(rate=4.0, requests=500)
    assert load("+workload=trace", "workload.path=x.csv") == Trace("x.csv")


# --- Configuration


@pytest.mark.parametrize("name", ["poisson", "gamma", "surge"])
def test_command_line_overrides_reach_the_workload(name: str) -> None:
    """Rate, number, lengths and readers are set as documented."""
    workload = load(
        f"+workload={name}",
        "workload.rate=2",
        "workload.requests=50",
        "lengths=azure",
        "lengths.max_prompt_tokens=1000",
        "readers=speaking",
        "readers.ttft_s=2.5",
    )
    assert workload.rate == 2
    assert workload.lengths == TableLengths("azure", max_prompt_tokens=1000)
    assert workload.readers == speaking(ttft_s=2.5)
    requests = workload.generate(0)
    assert requests.num_requests == 50
    assert requests.prompt_tokens.max() <= 1000
    assert (requests.ttft_s == 2.5).all()


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "lengths").glob("*.yaml")))
def test_every_lengths_file_makes_requests(name: str) -> None:
    """Each file of conf/lengths works in a workload."""
    requests = load("+workload=poisson", f"lengths={name}", "workload.requests=20").generate(0)
    assert requests.num_requests == 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reading", reading()),
        ("speaking", speaking()),
        ("fixed", fixed(4.8)),
        ("mixed", Mixture([reading(), speaking()], [1, 1])),
    ],
)
def test_every_readers_file_is_what_it_says(name: str, expected: object) -> None:
    """Each file of conf/readers makes the population that Python makes by that name."""
    assert {p.stem for p in (CONF / "readers").glob("*.yaml")} == {
        "reading",
        "speaking",
        "fixed",
        "mixed",
    }
    workload = load("+workload=poisson", f"readers={name}", "workload.requests=20")
    assert workload.readers == expected
    assert workload.generate(0).num_requests == 20


def test_trace_is_replayed_from_the_command_line(tmp_path: Path) -> None:
    """``workload=trace workload.path=FILE`` takes any file of the documented columns."""
    path = tmp_path / "my trace.csv"
    path.write_text("output_tokens,arrival_s,prompt_tokens\n5,10,7\n6,12,8\n9,13,8\n", "utf-8")
    workload = load(
        "+workload=trace",
        f"workload.path='{path}'",
        "workload.rate=2",
        "workload.requests=2",
        "readers=fixed",
    )
    requests = workload.generate(0)
    np.testing.assert_array_equal(requests.arrival_s, [0, 0.5])
    np.testing.assert_array_equal(requests.prompt_tokens, [7, 8])
    np.testing.assert_array_equal(requests.output_tokens, [5, 6])
    assert (requests.tds == 4.8).all()


def test_lengths_of_a_trace_cannot_be_chosen() -> None:
    """A trace has its own lengths: choosing some is an error, not ignored."""
    with pytest.raises(ConfigCompositionException, match="lengths"):
        load("+workload=trace", "workload.path=x.csv", "lengths=azure")
