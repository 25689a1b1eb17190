"""The latency model, learnt from iterations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from andes_opt.latency import LatencyModel
from engine_adapter.latency_learning import LatencyLearner

SEED = LatencyModel(0.03, 1e-4, 4e-7, 1e-4)


def feed(learner: LatencyLearner, truth: LatencyModel, n: int, noise: float = 0.0) -> None:
    """n iterations of a busy engine."""
    rng = np.random.default_rng(1)
    for _ in range(n):
        batch, prefill = int(rng.integers(1, 64)), int(rng.choice([0, 0, 0, 200, 500]))
        context = batch * int(rng.integers(50, 500))
        exact_s = truth.iteration_s(batch, context, prefill)
        learner.observe(exact_s * (1.0 + noise * rng.standard_normal()), batch, context, prefill)


def test_seed_first() -> None:
    """Before anything was seen, the seed counts."""
    assert LatencyLearner(SEED).model == SEED


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_learns(noise: float) -> None:
    """From a seed that is wrong by a factor of four, it predicts iterations to a few percent."""
    truth = LatencyModel(0.008, 4e-4, 1.5e-6, 3e-5)
    learner = LatencyLearner(SEED)
    feed(learner, truth, 1000, noise)
    assert learner.samples == 1000
    for batch, context, prefill in [(1, 200, 0), (16, 4000, 0), (60, 20000, 0), (16, 4000, 400)]:
        learnt = learner.model.iteration_s(batch, context, prefill)
        assert learnt == pytest.approx(truth.iteration_s(batch, context, prefill), rel=0.04)


def test_unexcited_stays_with_the_seed() -> None:
    """A coefficient that the traffic never shows keeps the seed's value."""
    truth = LatencyModel(0.03, 1e-4, 4e-7, 9.0)
    learner = LatencyLearner(SEED)
    for _ in range(3000):
        learner.observe(truth.iteration_s(8, 2000, 0), 8, 2000, 0)
    assert learner.model.per_prefill_token_s == pytest.approx(1e-4, rel=1e-3)
    assert learner.model.iteration_s(8, 2000) == pytest.approx(truth.iteration_s(8, 2000), rel=0.01)


def test_forgets() -> None:
    """After a change (another GPU clock, say) the old iterations fade."""
    learner = LatencyLearner(SEED, memory_iterations=200)
    feed(learner, SEED, 1000)
    slow = LatencyModel(0.09, 3e-4, 1.2e-6, 3e-4)
    feed(learner, slow, 1500)
    assert learner.model.iteration_s(16, 4000) == pytest.approx(
        slow.iteration_s(16, 4000), rel=0.03
    )


def test_never_negative() -> None:
    """Iterations that shrink with the batch make no negative coefficient."""
    learner = LatencyLearner(SEED)
    for batch in range(1, 200):
        learner.observe(0.05 / batch, batch, 100 * batch, 0)
    model = learner.model
    assert min(model.per_request_s, model.per_context_token_s, model.per_prefill_token_s) >= 0
    assert model.base_s > 0


@pytest.mark.parametrize("duration_s", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_ignored(duration_s: float) -> None:
    """A clock that stood still, ran backwards or broke teaches nothing."""
    learner = LatencyLearner(SEED)
    learner.observe(duration_s, 1, 100, 0)
    assert learner.model == SEED and learner.samples == 0


def test_outliers_are_rejected() -> None:
    """An iteration during which the machine slept does not count."""
    learner = LatencyLearner(SEED)
    feed(learner, SEED, 100)
    learner.observe(30.0, 8, 2000, 0)
    assert learner.rejected == 1
    assert learner.model.iteration_s(8, 2000) == pytest.approx(SEED.iteration_s(8, 2000), rel=0.01)


def test_a_new_regime_is_no_outlier() -> None:
    """An engine that is slower by a factor of 100 for good is believed after a while."""
    slow = LatencyModel(3.0, 1e-2, 4e-5, 1e-2)
    learner = LatencyLearner(SEED, memory_iterations=100)
    feed(learner, SEED, 100)
    feed(learner, slow, 1000)
    assert learner.model.iteration_s(16, 4000) == pytest.approx(
        slow.iteration_s(16, 4000), rel=0.03
    )


def test_need_not_learn() -> None:
    """Told not to learn, it keeps the profile."""
    learner = LatencyLearner(SEED, learn=False)
    learner.observe(1.0, 1, 100, 0)
    assert learner.model is SEED


@pytest.mark.parametrize("option", [{"memory_iterations": 1.0}, {"seed_weight": 0.0}])
def test_options(option: dict[str, float]) -> None:
    """Options out of range are refused."""
    with pytest.raises(ValueError, match="not understood"):
        LatencyLearner(SEED, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mixed_base_s", "mixed_per_request_s"), [(-0.004, 1e-4), (0.01, -2e-4)])
def test_learns_what_decoding_beside_a_prompt_takes(
    mixed_base_s: float, mixed_per_request_s: float
) -> None:
    """From a seed without the terms it predicts iterations with prefill, negative terms too."""
    truth = LatencyModel(0.015, 3e-4, 1e-7, 6e-5, mixed_base_s, mixed_per_request_s)
    learner = LatencyLearner(SEED)
    feed(learner, truth, 2000, 0.02)
    for batch, context, prefill in [(1, 200, 0), (60, 20000, 0), (2, 400, 300), (60, 20000, 300)]:
        learnt = learner.model.iteration_s(batch, context, prefill)
        assert learnt == pytest.approx(truth.iteration_s(batch, context, prefill), rel=0.04)
    assert learner.model.mixed_base_s * mixed_base_s > 0


def test_before_any_prompt_the_terms_stay_the_seeds() -> None:
    """An engine four times as slow as the seed, without prompts yet, keeps the seed's terms."""
    seed = LatencyModel(0.03, 1e-4, 4e-7, 1e-4, 0.002, 3e-5)
    learner = LatencyLearner(seed)
    slow = LatencyModel(0.12, 4e-4, 1.6e-6, 4e-4)
    rng = np.random.default_rng(0)
    for _ in range(500):
        batch = int(rng.integers(1, 64))
        context = batch * int(rng.integers(50, 500))
        learner.observe(slow.iteration_s(batch, context), batch, context, 0)
    assert learner.model.base_s == pytest.approx(0.12, rel=0.05)
    assert learner.model.mixed_base_s == pytest.approx(0.002, rel=1e-3)
    assert learner.model.mixed_per_request_s == pytest.approx(3e-5, rel=1e-3)
