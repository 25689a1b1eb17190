"""vLLM's own scheduler in virtual time: tokens, times, charges, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andes_opt.conversations import Conversations
from andes_opt.engine import EngineProfile
from andes_opt.latency import LatencyModel
from andes_opt.lengths import UniformLengths
from andes_opt.metrics import summarise
from andes_opt.snapshot import Starved
from andes_opt.workload import Poisson, Requests
from engine_adapter.emulator import EmulationResult, emulate

pytestmark = pytest.mark.live

sys.path.insert(0, str(Path(__file__).parent))

MINE = "emulated_schedulers"
ANDES = {
    "policy": {
        "_target_": "andes_opt.policy.andes.Andes",
        "solver": {"_target_": "solvers.greedy.Greedy"},
        "objective": {"_target_": "andes_opt.objective.AverageQoE"},
    }
}
RANDOM = {"policy": {"_target_": "live_policies.Random", "seed": 7}, "planning_share_limit": 1.0}
SMALL = EngineProfile(
    name="small",
    latency=LatencyModel(0.03, 1e-3, 1e-6, 1e-4),
    capacity_tokens=40 * 16,
    max_batch=16,
    token_budget=128,
    max_context_tokens=512,
    preemption="recompute",
)
#: A second an iteration, whatever it computes.
SLOW = replace(SMALL, latency=LatencyModel(1.0, 0.0, 0.0, 0.0), capacity_tokens=1000 * 16)
LENGTHS = UniformLengths(prompt_tokens=[5, 100], output_tokens=[1, 60])


def chats(n: int = 50, seed: int = 0, rate: float = 12.0) -> Requests:
    """Conversations that share prefixes, too many for the small engine."""
    workload = Conversations(
        rate, n, turns=2.0, system_prompt_tokens=40, think_s=0.5, max_prompt_tokens=200,
        lengths=LENGTHS,
    )  # fmt: skip
    return workload.generate(seed)


def alone(*requests: tuple[float, int, int]) -> Requests:
    """Requests of (arrival, prompt, reply)."""
    arrival_s, prompt, output = np.array(requests).T
    n = np.ones(len(requests))
    return Requests(arrival_s, prompt.astype(int), output.astype(int), n, 5 * n)


def check_outcome(result: EmulationResult, requests: Requests) -> None:
    """Each request that fits has exactly its tokens, one after the other, from its arrival on."""
    assert result.token_times_s is not None
    for i, times_s in enumerate(result.token_times_s):
        assert times_s.size == (0 if result.rejected[i] else requests.output_tokens[i])
        assert (np.diff(times_s) >= 0).all()
        assert times_s.size == 0 or times_s[0] > 0
    kept = ~result.rejected
    assert (result.output_tokens == requests.output_tokens)[kept].all()
    assert np.isfinite(result.completion_s[kept]).all()
    if result.timeline is not None:
        assert (np.diff(result.timeline[:, 0]) > 0).all()
    summary = summarise(result)
    assert summary["unfinished"] == 0
    assert summary["makespan_s"] >= result.busy_s * 0.999


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("settings", [None, RANDOM], ids=["stock", "random"])
def test_every_token_is_right(runner: str, asynchronous: bool, settings: Any) -> None:
    """Computed on the KV cache, under preemption, shared prefixes and either runner's protocol."""
    requests = chats()
    result = emulate(
        requests,
        SMALL,
        settings,
        vllm={"async-scheduling": asynchronous},
        model_runner=runner,
        check=True,
        record_tokens=True,
        record_timeline=True,
    )
    check_outcome(result, requests)
    assert result.preemptions.sum() > 5
    assert result.cached_tokens > 0
    assert result.timeline is not None
    assert result.timeline[:, 3].max() <= SMALL.capacity_tokens


def test_a_wrong_block_table_shows() -> None:
    """The checking worker fails under a scheduler that gives blocks away which are in use."""
    with pytest.raises((ValueError, AssertionError, KeyError)):
        emulate(chats(), SMALL, scheduler_cls=f"{MINE}.Thief", check=True)


def test_the_checking_worker_changes_nothing() -> None:
    """A worker that computes and one that answers with one token see the same schedule."""
    requests = Poisson(8.0, 40, LENGTHS).generate(2)
    one, other = (
        emulate(requests, SMALL, check=check, record_timeline=True) for check in (False, True)
    )
    assert one.timeline is not None
    np.testing.assert_array_equal(one.timeline, other.timeline)


@pytest.mark.parametrize("solver_time", ["free", 0.004])
def test_a_run_is_the_same_again(solver_time: Any) -> None:
    """Bit by bit, whatever the machine does meanwhile."""
    requests = chats(80, seed=4)
    runs = [
        emulate(requests, SMALL, ANDES, solver_time=solver_time, record_timeline=True)
        for _ in range(2)
    ]
    timed = {"decide_s", "solver_s", "wall_s", "adapter", "token_times_s"}
    for item in fields(EmulationResult):
        if item.name not in timed:
            np.testing.assert_array_equal(*(getattr(run, item.name) for run in runs))
    assert runs[0].solves > 10
    assert runs[0].adapter is not None and not runs[0].adapter["events"]


def test_a_first_token_takes_the_rest_of_two_iterations_and_its_own() -> None:
    """Where an iteration is scheduled while another runs: worked out by hand."""
    requests = alone((0.0, 10, 9), (1.5, 10, 2))
    result = emulate(requests, SLOW, record_tokens=True)
    assert result.token_times_s is not None
    np.testing.assert_allclose(result.token_times_s[0], np.arange(1.0, 10.0))
    # 0.5 s of the iteration that runs, 1 s of the one that is dispatched, 1 s of its own.
    np.testing.assert_allclose(result.token_times_s[1], [2.5, 3.5])
    assert result.iterations == 9
    assert result.busy_s == pytest.approx(9.0)


def test_a_first_token_takes_the_rest_of_one_iteration_and_its_own() -> None:
    """Where an iteration is scheduled after the one before."""
    requests = alone((0.0, 10, 9), (1.5, 10, 2))
    result = emulate(requests, SLOW, vllm={"async_scheduling": False}, record_tokens=True)
    assert result.token_times_s is not None
    np.testing.assert_allclose(result.token_times_s[1], [1.5, 2.5])


@pytest.mark.parametrize(
    ("asynchronous", "charge_s", "between_s"),
    [
        (True, 0.4, 1.0),  # hidden behind the iteration that runs
        (True, 1.5, 1.5),  # the GPU waits for the thread
        (False, 0.4, 1.4),  # added to each iteration
    ],
)
def test_the_adapters_time_is_charged_to_the_thread(
    asynchronous: bool, charge_s: float, between_s: float
) -> None:
    """A plan in every iteration, and more waiting than fits: worked out by hand."""
    always = {"policy": {"_target_": f"{MINE}.Planner"}, "planning_share_limit": 1.0}
    result = emulate(
        alone((0.0, 10, 30), (0.0, 10, 30)),
        SLOW,
        always,
        vllm={"async-scheduling": asynchronous},
        solver_time=charge_s,
        record_tokens=True,
    )
    assert result.solves > 20
    assert result.charged_s == pytest.approx(result.solves * charge_s)
    assert result.token_times_s is not None
    gaps_s = np.diff(result.token_times_s[0])[2:-3]
    np.testing.assert_allclose(gaps_s, between_s)


def test_measured_time_is_charged() -> None:
    """What the adapter takes on this machine is what the thread is charged."""
    result = emulate(chats(), SMALL, ANDES, solver_time="measured")
    assert result.adapter is not None
    own = ("observe_s", "snapshot_s", "decide_s", "apply_s")
    assert result.charged_s == pytest.approx(sum(result.adapter[name] for name in own), rel=0.01)
    assert result.charged_s >= result.decide_s * 0.5 > 0


def test_plans_of_the_background_arrive_after_their_time() -> None:
    """A plan that is said to take half a second is half a second old when it is used."""
    slow = {**ANDES, "background": {**ANDES, "deadline_s": 1.0, "duty_cycle": 1.0}}
    requests = chats(60, seed=1)
    runs = [
        emulate(requests, SMALL, slow, background_time=0.5, record_timeline=True) for _ in range(2)
    ]
    assert runs[0].charged_s == 0.0
    assert runs[0].adapter is not None and runs[0].adapter["late_plans"] > 3
    assert runs[0].adapter["late_age_s_sum"] >= 0.5 * runs[0].adapter["late_plans"]
    np.testing.assert_array_equal(runs[0].timeline, runs[1].timeline)


def test_what_can_never_fit_is_rejected_and_counted() -> None:
    """A prompt longer than the longest context, or a request longer than the KV cache."""
    requests = alone((0.0, 512, 100), (0.0, 20, 5), (1.0, 500, 13), (1.0, 20, 620))
    result = emulate(requests, SMALL, record_tokens=True)
    assert result.rejected.tolist() == [True, False, False, False]
    # As in vLLM, a reply ends at the longest context.
    assert result.output_tokens[1:].tolist() == [5, 12, 492]
    assert summarise(result)["unfinished"] == 0
    roomy = replace(SMALL, max_context_tokens=10_000)
    assert emulate(requests, roomy).rejected.tolist() == [False, False, False, False]
    assert emulate(alone((0.0, 500, 141)), roomy).rejected.all()


def test_an_engine_without_room_for_a_block_rejects_all() -> None:
    """So it does not start, but is counted."""
    none = emulate(chats(5), replace(SMALL, capacity_tokens=8))
    assert none.rejected.all() and none.iterations == 0
    assert summarise(none)["qoe_area_mean"] == 0.0


def test_capacity_is_what_requests_can_use() -> None:
    """A request that needs every block of the profile runs to its end, one more does not."""
    whole = alone((0.0, 600, 40))
    profile = replace(SMALL, max_context_tokens=10_000)
    assert emulate(whole, profile).iterations >= 40
    assert emulate(alone((0.0, 600, 41)), profile).rejected.all()
    # vLLM counts a block that nobody gets.
    flags = {"num-gpu-blocks-override": 40}
    assert emulate(whole, profile, vllm=flags).rejected.all()
    assert not emulate(whole, profile, vllm={"num_gpu_blocks_override": 41}).rejected.any()


def test_a_closed_loop() -> None:
    """So many are under way all the time, and arrivals are when others have left."""
    requests = Poisson(1000.0, 30, LENGTHS).generate(0)
    result = emulate(requests, SMALL, concurrency=4, record_tokens=True)
    check_outcome(result, requests)
    ends_s = result.arrival_s + result.completion_s
    for arrival_s in result.arrival_s:
        under_way = (result.arrival_s <= arrival_s) & (ends_s > arrival_s + 1e-9)
        assert under_way.sum() <= 4
    assert (result.arrival_s == 0).sum() == 4
    for arrival_s in result.arrival_s[4:]:
        assert np.abs(ends_s - arrival_s).min() < 1e-9


def test_the_prefix_cache_is_vllms() -> None:
    """Conversations are found again as far as whole blocks go, and nothing is with it off."""
    requests = alone((0.0, 64, 32), (100.0, 200, 5))
    requests = replace(requests, prefix_of=np.array([-1, 0]), prefix_tokens=np.array([0, 96]))
    roomy = replace(SMALL, capacity_tokens=64_000, latency=LatencyModel(0.03, 0.0, 0.0, 1.0))
    roomy = replace(roomy, token_budget=512)
    on = emulate(requests, roomy)
    off = emulate(requests, roomy, vllm={"enable-prefix-caching": False})
    # The reply's last token was never computed, so its block is not full.
    assert on.cached_tokens == 80 and off.cached_tokens == 0
    assert off.first_token_s[1] - on.first_token_s[1] == pytest.approx(80.0)


def test_a_scheduler_of_ones_own() -> None:
    """A class by its name decides; a short prompt overtakes a long one that waits."""
    profile = replace(SMALL, max_batch=1)
    requests = alone((0.0, 10, 30), (0.1, 90, 10), (0.2, 10, 10))
    stock = emulate(requests, profile)
    mine = emulate(requests, profile, scheduler_cls=f"{MINE}.ShortestPromptFirst")
    assert mine.scheduler == f"{MINE}.ShortestPromptFirst"
    assert stock.scheduler == "vllm.v1.core.sched.async_scheduler.AsyncScheduler"
    ends = [run.arrival_s + run.completion_s for run in (stock, mine)]
    assert ends[0][1] < ends[0][2] and ends[1][2] < ends[1][1]


def test_a_scheduler_of_ones_own_with_our_adapter() -> None:
    """A class that inherits from ours has the settings and the clock; others ignore them."""
    always = {"policy": {"_target_": f"{MINE}.Planner"}, "planning_share_limit": 1.0}
    requests = alone((0.0, 10, 30), (0.0, 10, 30))
    name = f"{MINE}.Steered"
    mine = emulate(requests, SLOW, always, scheduler_cls=name, solver_time=1.5)
    assert (mine.scheduler, mine.charged_s) == (name, pytest.approx(1.5 * mine.solves))
    assert mine.solves > 20
    own = emulate(requests, SLOW, always, scheduler_cls=f"{MINE}.ShortestPromptFirst")
    assert own.solves == 0 and own.adapter is None
    # Without a policy in the settings it is the adapter's usual one.
    assert emulate(requests, SLOW, {}).decisions > 0


def test_a_scheduler_that_gives_requests_up() -> None:
    """Their replies are unfinished and scored as far as they came; a closed loop goes on."""
    requests = Poisson(50.0, 20, LENGTHS).generate(1)
    result = emulate(requests, SMALL, scheduler_cls=f"{MINE}.Dropper", concurrency=3)
    summary = summarise(result)
    late = requests.output_tokens > 12  # one or two more may be on their way
    assert 0 < late.sum() <= summary["unfinished"] <= (requests.output_tokens > 10).sum()
    assert (result.output_tokens <= 12).all()
    assert np.isfinite(result.qoe_area).all()


def test_a_scheduler_that_serves_nobody_is_stopped() -> None:
    """With nothing to come, a run does not go on for ever."""
    with pytest.raises(Starved, match="Nobody scheduled nothing"):
        emulate(chats(3), SMALL, scheduler_cls=f"{MINE}.Nobody")


def test_a_policy_that_fails_ends_the_run() -> None:
    """A result under vLLM's own order must not look like one of the policy's."""
    needs_lengths = {"policy": {"_target_": "andes_opt.policy.srpt_oracle.SRPTOracle"}}
    with pytest.raises(ValueError, match="oracle"):
        emulate(chats(10), SMALL, needs_lengths)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheduler_cls": "nowhere.Class"}, "scheduler_cls = nowhere.Class not understood"),
        ({"scheduler_cls": "json.JSONDecoder"}, "SchedulerInterface"),
        ({"scheduler_cls": f"{MINE}.Missing"}, "Missing"),
        ({"vllm": {"nonsense": 3}}, "need one of async-scheduling, block-size,"),
        ({"vllm": {"watermark": 2}}, "vllm.watermark = 2"),
        ({"vllm": {"scheduling-policy": "lifo"}}, "'fcfs' or 'priority'"),
        ({"vllm": {"max-num-seqs": "many"}}, "vllm.max-num-seqs = 'many'"),
        ({"vllm": {"max-num-seqs": 64, "max_num_seqs": 64}}, "given twice"),
        ({"vllm": {"block-size": 0}}, "vllm.block-size = 0"),
        ({"vllm": {"enable-prefix-caching": 3}}, "true or false"),
        ({"settings": ANDES, "vllm": {"scheduling-policy": "priority"}}, "fcfs"),
        ({"settings": {**ANDES, "nonsense": 1}}, "nonsense"),
        ({"settings": {"policy": "andes"}}, "need a mapping with _target_"),
        ({"solver_time": "often"}, "solver_time"),
        ({"model_runner": "v3"}, "v1 or v2"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    """One sentence with the value and the choices."""
    with pytest.raises(ValueError) as caught:
        emulate(chats(3), SMALL, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vllms_options_reach_its_scheduler() -> None:
    """By either way of writing a flag, and over the profile."""
    requests = Poisson(100.0, 20, LENGTHS).generate(0)
    run = emulate(requests, SMALL, vllm={"max_num_seqs": 2, "watermark": 0.1}, record_timeline=True)
    assert run.timeline is not None
    assert run.timeline[:, 1].max() <= 2
    priority = emulate(requests, SMALL, vllm={"scheduling-policy": "priority"})
    assert summarise(priority)["unfinished"] == 0
