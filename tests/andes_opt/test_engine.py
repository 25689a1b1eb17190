"""Engine profiles: the class, and every file of conf/engine."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import conf
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.lengths import SHIPPED_TABLES, TableLengths

CONF = Path(conf.__file__).resolve().parent
DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in (CONF / "engine").glob("*.yaml"))
LATENCY = LatencyModel(0.035, 3e-4, 4e-7, 1.2e-4)

# The numbers that the project's targets are about: base, per request, per context token and
# per prefill token in seconds, KV tokens, preemption, KV bytes per token, bus bytes/s.
REFERENCE = {
    "opt_66b_4xa100": (0.035, 3e-4, 4e-7, 1.2e-4, 60_000, "swap", 2.36e6, 80e9),
    "opt_66b_recompute": (0.035, 3e-4, 4e-7, 1.2e-4, 60_000, "recompute", 2.36e6, 80e9),
    "kv_12k": (0.035, 3e-4, 4e-7, 1.2e-4, 12_000, "swap", 2.36e6, 80e9),
    "opt_66b_slow": (0.060, 8e-4, 4e-7, 1.5e-4, 60_000, "swap", 2.36e6, 80e9),
    "opt_13b_1xa100": (0.018, 1e-4, 5e-7, 1e-4, 50_000, "swap", 0.82e6, 20e9),
}


@cache
def load(name: str, *overrides: str) -> Any:
    """The object that ``conf/engine/name.yaml`` makes."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=[f"+engine={name}", *overrides]).engine)


def fits(file: str, **where: str) -> dict[str, str]:
    """The one row of a table of published fits (see the profiles' comments for sources)."""
    with open(DATA / file, newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if where.items() <= row.items()]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_makes_the_profile_it_is_named_after(name: str) -> None:
    """Each YAML file instantiates, says its own name and source, and opens with a line on it."""
    engine = load(name)
    assert isinstance(engine, EngineProfile)
    assert engine.name == name
    assert engine.source
    for number in (engine.latency.base_s, engine.capacity_tokens, engine.swap_s_per_token):
        assert isinstance(number, (int, float)), "YAML reads 4e-7 as text; write 4.0e-07"
    first_line = (CONF / "engine" / f"{name}.yaml").read_text("utf-8").splitlines()[0]
    assert first_line.startswith("# ")
    assert len(first_line) > 20


def test_the_promised_profiles_exist() -> None:
    """The reference profiles and the variants are all there."""
    promised = {
        *REFERENCE,
        "llama2_70b_4xa100",
        "opt_13b_1xa100_fitted",
        "opt_66b_4xa100_fitted",
        "opt_66b_4xa100_40g",
        "opt_30b_4xa100_40g",
        "opt_175b_8xa100",
        "opt_13b_1xa40",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_reference_profiles_have_the_numbers_of_the_design(name: str) -> None:
    """The profiles that all targets are about are exactly as agreed."""
    base, request, context, prefill, capacity, preemption, kv_bytes, bus = REFERENCE[name]
    engine = load(name)
    assert engine.latency == LatencyModel(base, request, context, prefill)
    assert (engine.capacity_tokens, engine.block_tokens) == (capacity, 16)
    assert engine.token_budget == 2048
    assert engine.preemption == preemption
    assert engine.swap_s_per_token == pytest.approx(kv_bytes / bus, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "regime", "model", "gpus"),
    [
        ("opt_13b_1xa100_fitted", "large", "opt-13b", "1"),
        ("opt_66b_4xa100_fitted", "large", "opt-66b", "4"),
        ("opt_66b_4xa100_40g", "small", "opt-66b", "4"),
    ],
)
def test_fitted_profiles_equal_the_published_fits(
    name: str, regime: str, model: str, gpus: str
) -> None:
    """The fitted OPT profiles are DistServe's rows for vLLM in seconds."""
    row = fits(
        "latency_fits_distserve.csv", engine="vllm", model=model, tp=gpus, batch_regime=regime
    )
    latency = load(name).latency
    assert latency.base_s == pytest.approx(float(row["dec_a_ms"]) / 1e3, rel=1e-9)
    assert latency.per_request_s == pytest.approx(float(row["dec_b_ms_per_req"]) / 1e3, rel=1e-9)
    per_context = float(row["dec_c_ms_per_ctxtok"]) / 1e3
    assert latency.per_context_token_s == pytest.approx(per_context, rel=1e-9)
    per_prefill = float(row["pre_d_ms_per_tok"]) / 1e3
    assert latency.per_prefill_token_s == pytest.approx(per_prefill, rel=1e-9)


def test_llama_profile_follows_the_published_fit() -> None:
    """Decoding as fitted; a full prefill budget takes as long as in the fit of prefills."""
    row = fits("latency_fits_splitwise.csv", model="llama2-70b", gpu="a100-80gb", tp="4")
    memory = fits("kv_capacity.csv", model="llama-2-70b", n_gpu="4")
    engine = load("llama2_70b_4xa100")
    assert engine.latency.base_s == pytest.approx(float(row["dec_a_ms"]) / 1e3, rel=1e-3)
    assert engine.latency.per_request_s == pytest.approx(
        float(row["dec_b_ms_per_req"]) / 1e3, rel=1e-3
    )
    assert engine.latency.per_context_token_s == pytest.approx(
        float(row["dec_c_ms_per_ctxtok"]) / 1e3, rel=1e-3
    )
    full_s = (float(row["pre_a_ms"]) + float(row["pre_d_ms_per_tok"]) * 2048) / 1e3
    assert engine.latency.iteration_s(0, 0, 2048) == pytest.approx(full_s, rel=1e-3)
    assert engine.capacity_tokens == int(memory["kv_capacity_tokens(util0.90-2GiB/gpu)"])
    kv_bytes = float(memory["kv_bytes_per_token"])
    assert engine.swap_s_per_token == pytest.approx(kv_bytes / 80e9, rel=1e-2)


def test_estimates_follow_from_their_neighbours() -> None:
    """OPT-30B lies between the fitted 13B and 66B; OPT-175B is BLOOM-176B; the A40 is slower."""
    small, large = (
        fits("latency_fits_distserve.csv", engine="vllm", model=m, tp="4", batch_regime="large")
        for m in ("opt-13b", "opt-66b")
    )
    for ours, column in (
        (load("opt_30b_4xa100_40g").latency.base_s, "dec_a_ms"),
        (load("opt_30b_4xa100_40g").latency.per_request_s, "dec_b_ms_per_req"),
        (load("opt_30b_4xa100_40g").latency.per_context_token_s, "dec_c_ms_per_ctxtok"),
        (load("opt_30b_4xa100_40g").latency.per_prefill_token_s, "pre_d_ms_per_tok"),
    ):
        a, b = float(small[column]), float(large[column])
        assert ours * 1e3 == pytest.approx(a + (b - a) * (30 - 13) / (66 - 13), rel=1e-3)

    bloom = fits("latency_fits_splitwise.csv", model="bloom-176b", gpu="a100-80gb", tp="8")
    big = load("opt_175b_8xa100").latency
    assert big.base_s == pytest.approx(float(bloom["dec_a_ms"]) / 1e3, rel=1e-3)
    assert big.per_request_s == pytest.approx(float(bloom["dec_b_ms_per_req"]) / 1e3, rel=1e-3)
    assert big.per_prefill_token_s == pytest.approx(
        float(bloom["pre_d_ms_per_tok"]) / 1e3, rel=1e-3
    )

    a40, a100 = load("opt_13b_1xa40"), load("opt_13b_1xa100_fitted")
    assert 1.5 < a40.latency.base_s / a100.latency.base_s < 3
    assert a40.capacity_tokens < a100.capacity_tokens


@pytest.mark.parametrize("name", NAMES)
def test_no_profile_rejects_an_ordinary_chat_request(name: str) -> None:
    """The longest ShareGPT request fits every KV cache; no shipped length meets a model limit."""
    engine = load(name)
    chat = TableLengths("sharegpt")
    longest_chat = chat.prompt.tokens[-1] + chat.output.tokens[-1]
    assert longest_chat <= engine.num_blocks * engine.block_tokens
    for table in SHIPPED_TABLES:
        lengths = TableLengths(table)
        assert lengths.prompt.tokens[-1] + lengths.output.tokens[-1] <= engine.max_context_tokens


def test_numbers_can_be_overridden_from_the_command_line() -> None:
    """``engine.capacity_tokens=...`` and nested latency coefficients reach the object."""
    engine = load("kv_12k", "engine.capacity_tokens=8000", "engine.latency.base_s=0.05")
    assert engine.capacity_tokens == 8000
    assert engine.latency.base_s == 0.05
    assert (engine.reserve_full_context, engine.watermark) == (True, 0.0)
    older = load("kv_12k", "engine.reserve_full_context=false", "engine.watermark=0.01")
    assert (older.reserve_full_context, older.watermark) == (False, 0.01)


def test_blocks_are_whole() -> None:
    """A capacity that is no multiple of the block loses the remainder."""
    engine = EngineProfile("x", LATENCY, capacity_tokens=100, block_tokens=32)
    assert engine.num_blocks == 3


def test_the_watermark_is_vllms() -> None:
    """vLLM takes its share of all blocks, the null block among them, and drops the fraction."""
    for share, blocks in ((0.0, 0), (0.01, 1), (0.0099, 0), (0.5, 50), (0.99, 99)):
        assert EngineProfile("x", LATENCY, 99 * 16, watermark=share).watermark_blocks == blocks


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("capacity_tokens", 0, "capacity_tokens = 0 not understood: need a whole"),
        ("block_tokens", -16, "block_tokens = -16 not understood: need a whole"),
        ("max_batch", 0, "max_batch = 0 not understood: need a whole"),
        ("token_budget", 0, "token_budget = 0 not understood: need a whole"),
        (
            "max_context_tokens",
            0,
            "max_context_tokens = 0 not understood: need a whole",
        ),
        ("preemption", "drop", "'drop' not understood: need one of swap, recompute"),
        ("swap_s_per_token", -1.0, "swap_s_per_token = -1.0 not understood"),
        ("recompute_hit_share", 1.5, "recompute_hit_share = 1.5 not understood"),
        ("reserve_full_context", "yes", "reserve_full_context = 'yes' not understood"),
        ("watermark", 1.0, "watermark = 1.0 not understood"),
        ("watermark", float("nan"), "watermark = nan not understood"),
        ("swap_s_per_token", float("nan"), "swap_s_per_token = nan not understood"),
    ],
)
def test_refuses_numbers_out_of_range(option: str, value: object, words: str) -> None:
    """A bad option is refused in one sentence that names it and its value."""
    options: dict[str, Any] = {"capacity_tokens": 1000, option: value}
    with pytest.raises(ValueError, match=words):
        EngineProfile("x", LATENCY, **options)
