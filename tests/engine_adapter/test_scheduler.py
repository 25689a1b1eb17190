"""The scheduler inside vLLM's own, stepped without a model (see live_stepping)."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from live_policies import Recorder
from live_stepping import Engine, make_scheduler, reference, write_tiny_config

import conf
from experiments.serve import adapter_settings

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.live

CONF = Path(conf.__file__).parent
FCFS = {"_target_": "andes_opt.policy.fcfs.FCFS"}
ROUND_ROBIN = {"_target_": "andes_opt.policy.round_robin.RoundRobin", "quantum_tokens": 6}
NONSENSE = ["raise", "none", "shape", "nan_action", "value", "twice", "outside", "replan"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder that holds a config."""
    return write_tiny_config(tmp_path_factory.mktemp("model"))


@pytest.fixture
def start(model: str) -> Any:
    """Makes an engine: with a policy ours, without one vLLM's own."""
    engines: list[Engine] = []

    def make(
        policy: dict[str, Any] | None = None,
        *,
        asynchronous: bool = False,
        scheduler_class: Any = None,
        adapter: dict[str, Any] | None = None,
        **options: Any,
    ) -> Engine:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        from engine_adapter.scheduler import AndesScheduler

        config = {}
        if policy is not None:
            config = {"andes_opt": {"policy": policy, "planner_share": 1.0, **(adapter or {})}}
            scheduler_class = scheduler_class or AndesScheduler
        stock = AsyncScheduler if asynchronous else Scheduler
        engine = Engine.around(
            make_scheduler(
                model,
                scheduler_class or stock,
                asynchronous=asynchronous,
                additional_config=config,
                **options,
            )
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.scheduler.shutdown()


class Traffic:
    """Random requests, some sharing prefixes, some aborted, at random moments."""

    def __init__(self, seed: int, requests: int = 60, rate: float = 0.3, aborts: float = 0.02):
        self._rng = random.Random(seed)
        self._rate, self._aborts = rate, aborts
        prefixes = [self._tokens(64) for _ in range(3)]
        self.want: dict[str, tuple[list[int], int]] = {}
        self.aborted: set[str] = set()
        for i in range(requests):
            shared = self._rng.choice(prefixes) if self._rng.random() < 0.4 else []
            prompt = shared + self._tokens(self._rng.randint(1, 60))
            self.want[f"r{i}"] = (prompt, self._rng.randint(1, 60))

    def _tokens(self, n: int) -> list[int]:
        return [self._rng.randrange(250) for _ in range(n)]

    def play(self, engine: Engine, most_steps: int = 5_000) -> None:
        """Let all arrive, and step until all have left."""
        rng = self._rng
        pending = list(self.want)
        while pending or engine.scheduler.has_requests() or engine.queue:
            assert engine.steps < most_steps, f"stuck: {engine.state()}"
            while pending and rng.random() < self._rate:
                key = pending.pop(0)
                engine.add(key, *self.want[key])
            if rng.random() < self._aborts and engine.scheduler.requests:
                key = rng.choice(list(engine.scheduler.requests))
                engine.abort(key)
                self.aborted.add(key)
            engine.step()

    def check(self, engine: Engine) -> None:
        """Everybody has exactly their tokens; who hung up, the first of them."""
        for key, (prompt, tokens) in self.want.items():
            expected, got = reference(prompt, tokens), engine.replies[key]
            if key in self.aborted:
                assert got == expected[: len(got)], key
            else:
                assert got == expected, key
                assert key in engine.finished, key
        pool = engine.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == engine.worker.blocks, "KV blocks leaked"
        assert not engine.scheduler.running and not engine.scheduler.waiting


def summary(engine: Engine) -> dict[str, Any]:
    """The adapter's counters."""
    values: dict[str, Any] = engine.scheduler.andes.summary()
    return values


def serve(engine: Engine, traffic: Traffic) -> dict[str, Any]:
    """Play traffic, check every token, and return the adapter's counters."""
    traffic.play(engine)
    traffic.check(engine)
    counters = summary(engine)
    assert counters["unfinished"] == 0
    assert counters["events"].get("adapter failed", 0) == 0
    assert counters["events"].get("eviction failed", 0) == 0
    return counters


@pytest.mark.parametrize("asynchronous", [False, True])
def test_harness(start: Any, asynchronous: bool) -> None:
    """vLLM's own schedulers give the reference's tokens, preemptions included."""
    traffic = Traffic(seed=0)
    engine = start(asynchronous=asynchronous)
    traffic.play(engine)
    traffic.check(engine)


def test_harness_can_fail(start: Any) -> None:
    """A block that is taken from a running request shows in its tokens."""
    engine = start()
    rng = random.Random(0)
    prompts = {key: [rng.randrange(250) for _ in range(40)] for key in "ab"}
    engine.add("a", prompts["a"], 40)
    engine.step()
    engine.scheduler.kv_cache_manager.free(engine.scheduler.running[0])
    engine.add("b", prompts["b"], 40)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        engine.drain(200)
        assert engine.replies == {key: reference(prompts[key], 40) for key in "ab"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_pass_through_is_plain_vllm(start: Any, asynchronous: bool) -> None:
    """With a policy that passes through, every iteration is what vLLM's would have been."""
    logs = []
    for policy in (None, FCFS):
        engine = start(policy, asynchronous=asynchronous)
        log: list[Any] = []
        engine.on_output = lambda output, log=log: log.append(dict(output.num_scheduled_tokens))
        traffic = Traffic(seed=3)
        traffic.play(engine)
        traffic.check(engine)
        logs.append(log)
    assert logs[0] == logs[1]
    counters = summary(engine)
    assert counters["engine_preemptions"] > 0
    assert counters["passed_through"] == counters["iterations"] and counters["plans"] == 1


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_policy(start: Any, asynchronous: bool, seed: int) -> None:
    """Serving, holding and evicting at random changes no token and loses nobody."""
    counters = serve(
        start({"_target_": "live_policies.Random", "seed": seed}, asynchronous=asynchronous),
        Traffic(seed),
    )
    assert counters["evicted"] > 50 and counters["held"] > 100


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_caching": False},
        {"chunked_prefill": False},
        {"block_tokens": 32, "blocks": 20},
        {"max_batch": 3},
        {"token_budget": 20},
        {"blocks": 12},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_engine_options(start: Any, asynchronous: bool, options: dict[str, Any]) -> None:
    """So it is without prefix cache or chunked prefill, with tiny KV, batch or token budget."""
    policy = {"_target_": "live_policies.Random", "seed": 7}
    serve(start(policy, asynchronous=asynchronous, **options), Traffic(11, requests=30))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preemption_storm(start: Any, asynchronous: bool) -> None:
    """Evicting half of everybody every third iteration changes no token."""
    counters = serve(
        start({"_target_": "live_policies.Storm"}, asynchronous=asynchronous), Traffic(5)
    )
    assert counters["evicted"] > 100


def test_synchronous_class(start: Any) -> None:
    """The class on vLLM's synchronous scheduler does the same."""
    from engine_adapter.scheduler import AndesSyncScheduler

    policy = {"_target_": "live_policies.Random", "seed": 2}
    serve(start(policy, scheduler_class=AndesSyncScheduler), Traffic(2))


def test_hundreds(start: Any) -> None:
    """Four hundred requests with many aborts, asynchronously."""
    policy = {"_target_": "live_policies.Random", "seed": 4, "hold": 0.2}
    traffic = Traffic(8, requests=400, rate=0.7, aborts=0.1)
    serve(start(policy, asynchronous=True, blocks=80, max_batch=32), traffic)
    assert len(traffic.aborted) > 20


@pytest.mark.parametrize("asynchronous", [False, True])
def test_plans_fit(start: Any, asynchronous: bool) -> None:
    """Feasible plans leave the engine nothing to preempt, where its own order had to."""
    counters = serve(start(ROUND_ROBIN, asynchronous=asynchronous), Traffic(3))
    assert counters["evicted"] > 20
    assert counters["engine_preemptions"] == 0


@pytest.mark.parametrize("action", ["WAIT", "HOLD"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_plan_that_moves_nothing(start: Any, asynchronous: bool, action: str) -> None:
    """A policy that serves nobody is overruled, and everybody gets their tokens."""
    policy = {"_target_": "live_policies.Always", "action": action}
    counters = serve(start(policy, asynchronous=asynchronous), Traffic(1, requests=20))
    assert counters["rescues"] > 0
    assert counters["events"]["plan moved nothing"] == counters["rescues"]


@pytest.mark.parametrize("how", NONSENSE)
def test_planner_fails_always(start: Any, how: str) -> None:
    """A planner that never gives a decision leaves vLLM's first come, first served."""
    logs = []
    for policy in (None, {"_target_": "live_policies.Broken", "how": how}):
        engine = start(policy)
        log: list[Any] = []
        engine.on_output = lambda output, log=log: log.append(dict(output.num_scheduled_tokens))
        traffic = Traffic(3, requests=20)
        traffic.play(engine)
        traffic.check(engine)
        logs.append(log)
    assert logs[0] == logs[1]
    assert summary(engine)["events"]["planner failed"] >= 3


@pytest.mark.parametrize("how", ["raise", "value"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_planner_fails_now_and_then(start: Any, asynchronous: bool, how: str) -> None:
    """Between failures the plans count; at a failure the last good one goes on."""
    policy = {"_target_": "live_policies.Broken", "how": how, "every": 3}
    counters = serve(start(policy, asynchronous=asynchronous), Traffic(4))
    assert counters["plans"] > 20 and counters["events"]["planner failed"] > 10


@pytest.mark.parametrize(
    "solver",
    [path.stem for path in sorted(CONF.glob("solver/*.yaml")) if path.stem != "dp_torch"],
)
def test_every_solver(start: Any, solver: str) -> None:
    """The paper's policy and ours serve with each solver of conf/solver; no token changes."""
    for policy in ("andes", "thrift"):
        settings = adapter_settings(
            [f"policy={policy}", f"solver={solver}", "policy.time_limit_s=0.1"]
        )
        # Brute force takes 20 requests at most; 8 arrive. Slow back-ends are asked less often.
        engine = start(
            settings["policy"], asynchronous=True, adapter={"planner_share": 0.2}, blocks=14
        )
        counters = serve(engine, Traffic(13, requests=8, rate=0.5, aborts=0.0))
        assert counters["plans"] > 0 and counters["decide_s"] > 0
        assert counters["events"].get("planner failed", 0) == 0


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "policy",
    # The oracle's lengths are not to be had from a live engine.
    [path.stem for path in sorted(CONF.glob("policy/*.yaml")) if path.stem != "srpt_oracle"],
)
def test_every_policy(start: Any, policy: str, asynchronous: bool) -> None:
    """Each policy of conf/policy serves requests that hang up and come in bursts."""
    settings = adapter_settings([f"policy={policy}", "solver=greedy"])
    engine = start(settings["policy"], asynchronous=asynchronous)
    counters = serve(engine, Traffic(21, requests=40, rate=0.8))
    assert counters["plans"] > 0
    assert counters["events"].get("planner failed", 0) == 0


def test_oracle_lengths_are_not_to_be_had(start: Any) -> None:
    """A policy that wants the true lengths fails, is counted, and vLLM's order serves all."""
    settings = adapter_settings(["policy=srpt_oracle"])
    counters = serve(start(settings["policy"]), Traffic(21, requests=10))
    assert counters["plans"] == 0 and counters["events"]["planner failed"] > 0


@pytest.mark.parametrize("solver", ["cp_sat", "pulp_cbc"])
def test_a_slow_solver_serves_from_the_background(start: Any, solver: str) -> None:
    """CP-SAT and CBC plan in their process; their plans' age is told, and no step waits."""
    settings = adapter_settings(["live=background", f"solver={solver}"])
    settings["background"]["duty_cycle"] = 1.0
    engine = start(
        settings["policy"], asynchronous=True, adapter={"background": settings["background"]}
    )
    engine.on_step = lambda _: time.sleep(0.002)
    end_s, rounds = time.monotonic() + 90, 0
    while summary(engine)["late_plans"] < 3:
        traffic = Traffic(rounds, requests=30, rate=0.8)
        traffic.want = {f"{rounds}-{key}": value for key, value in traffic.want.items()}
        traffic.play(engine, most_steps=10**9)
        traffic.check(engine)
        rounds += 1
        assert time.monotonic() < end_s, summary(engine)
    counters = summary(engine)
    assert 0 < counters["late_age_s_max"] <= 2.0
    assert not counters["events"].get("background planner failed")


def test_a_solver_that_runs_out_of_time(start: Any) -> None:
    """With hardly any time, a solver's incumbents serve; nothing is lost."""
    settings = adapter_settings(["policy=andes", "solver=cp_sat", "policy.time_limit_s=1e-4"])
    counters = serve(start(settings["policy"]), Traffic(22, requests=15))
    assert counters["plans"] > 0


def test_a_planner_that_dawdles(start: Any) -> None:
    """Slow decisions are counted, and planning pauses so that it keeps to its share."""
    policy = {"_target_": "live_policies.Broken", "how": "slow"}
    engine = start(policy, adapter={"planner_share": 0.05})
    engine.on_step = lambda _: time.sleep(0.002)
    counters = serve(engine, Traffic(4, requests=20))
    assert counters["events"]["planner slow"] == counters["plans"] > 0
    assert counters["plans"] < 0.2 * counters["iterations"]


def test_absurd_targets(start: Any) -> None:
    """Requests with absurd targets are served like all others, and counted."""
    engine = start(ROUND_ROBIN)
    absurd = [-1.0, float("nan"), float("inf"), "fast", None, [1], 1e308]
    for i, value in enumerate(absurd):
        engine.add(f"a{i}", [1, 2, 3], 5, ttft_s=value)
        engine.add(f"b{i}", [1, 2, 3], 5, tds=value)
    engine.drain(200)
    assert all(reply == reference([1, 2, 3], 5) for reply in engine.replies.values())
    assert summary(engine)["events"] == {"target not understood": 2 * len(absurd)}


def test_targets_reach_the_policy(start: Any) -> None:
    """What a request asks for is what the policy sees; the others have the default."""
    engine = start(
        {"_target_": "live_policies.Recorder"}, adapter={"target": {"ttft_s": 3.0, "tds": 2.0}}
    )
    engine.add("a", [1, 2, 3], 3, ttft_s=0.25, tds=9)
    engine.add("b", [1, 2, 3], 3)
    engine.step()
    snapshot = Recorder.snapshots[-1]
    assert snapshot.ttft_s.tolist() == [0.25, 3.0]
    assert snapshot.tds.tolist() == [9.0, 2.0]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_snapshots_are_true(start: Any, asynchronous: bool) -> None:
    """At every decision the snapshot agrees with the engine: KV, tokens, order, states."""
    engine = start({"_target_": "live_policies.Recorder", "seed": 3}, asynchronous=asynchronous)
    scheduler = engine.scheduler
    checked = [0]

    def check(snapshot: Any) -> None:
        n = snapshot.num_requests
        assert n == len(scheduler.requests)
        requests = list(scheduler.requests.values())
        assert (np.diff(snapshot.request_id) > 0).all()
        assert (snapshot.arrival_s <= snapshot.time_s).all()
        manager = scheduler.kv_cache_manager
        for i, request in enumerate(requests):
            blocks = len(manager.get_block_ids(request.request_id)[0])
            assert snapshot.kv_tokens[i] == blocks * scheduler.block_size, request.request_id
            assert snapshot.prompt_tokens[i] == request.num_prompt_tokens
            assert snapshot.delivered[i] == len(engine.replies[request.request_id])
            assert snapshot.preemptions[i] == request.num_preemptions
            assert (snapshot.state[i] in (1, 3)) == (request in scheduler.running)
            assert snapshot.need_tokens[i] <= snapshot.capacity_tokens
            assert snapshot.need_tokens[i] * 2 >= snapshot.kv_tokens[i]
        assert snapshot.capacity_tokens < engine.worker.blocks * scheduler.block_size
        checked[0] += 1

    Recorder.on_decide = check
    try:
        serve(engine, Traffic(6))
    finally:
        Recorder.on_decide = None
    assert checked[0] > 100


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_hold_keeps_the_kv(start: Any, asynchronous: bool) -> None:
    """A held request gets no token, keeps its blocks, and goes on where it was."""
    engine = start({"_target_": "live_policies.HoldFirst", "after": 5}, asynchronous=asynchronous)
    prompts = {"a": [1] * 40, "b": [2] * 40}
    for key, prompt in prompts.items():
        engine.add(key, prompt, 30)
    lengths, blocks = [], []
    for _ in range(29):
        engine.step()
        lengths.append(len(engine.replies["a"]))
        blocks.append(len(engine.scheduler.kv_cache_manager.get_block_ids("a")[0]))
    held_at = lengths[10]
    assert 0 < held_at < 10 and lengths[28] == held_at and len(engine.replies["b"]) > 23
    assert len(set(blocks[10:])) == 1 and blocks[10] >= 3
    engine.drain(200)
    assert engine.replies == {key: reference(prompt, 30) for key, prompt in prompts.items()}
    assert summary(engine)["preemptions"] == 0


def test_an_id_comes_again(start: Any) -> None:
    """A client may hang up and come back under the same id between two iterations."""
    engine = start(ROUND_ROBIN)
    engine.add("a", [1] * 20, 30)
    for _ in range(5):
        engine.step()
    engine.abort("a")
    engine.add("a", [2] * 20, 30)
    engine.drain(100)
    assert engine.replies["a"] == reference([2] * 20, 30)
    assert summary(engine)["requests"] == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_owner_pauses(start: Any, asynchronous: bool) -> None:
    """While the engine is paused nothing runs; afterwards everything goes on."""
    from vllm.v1.core.sched.interface import PauseState

    engine = start({"_target_": "live_policies.Random", "seed": 1}, asynchronous=asynchronous)
    for i in range(10):
        engine.add(str(i), [i] * 30, 20)
    for _ in range(6):
        engine.step()
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(3):
        engine.step()
    before = {key: len(reply) for key, reply in engine.replies.items()}
    for _ in range(5):
        engine.step()
    assert {key: len(reply) for key, reply in engine.replies.items()} == before
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.drain(1000)
    assert all(engine.replies[str(i)] == reference([i] * 30, 20) for i in range(10))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_prefix_cache_is_reset(start: Any, asynchronous: bool) -> None:
    """Preempting everybody from outside, as a change of weights does, loses nobody."""
    engine = start({"_target_": "live_policies.Random", "seed": 1}, asynchronous=asynchronous)
    traffic = Traffic(9, requests=30, aborts=0.0)

    def reset(engine: Engine) -> None:
        if engine.steps % 17 == 0:
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)

    engine.on_step = reset
    serve(engine, traffic)


def test_ten_thousand_waiting(start: Any) -> None:
    """With 10,000 requests in the queue tokens flow, and the adapter's time stays bounded."""
    engine = start(ROUND_ROBIN, adapter={"planner_share": 0.01}, blocks=200, max_batch=32)
    for i in range(10_000):
        engine.add(str(i), [i % 250] * 20, 20)
    begin_s = time.perf_counter()
    for _ in range(100):
        engine.step()
    assert time.perf_counter() - begin_s < 30.0
    assert len(engine.finished) > 50
    counters = summary(engine)
    assert counters["rescues"] == 0
    assert counters["planner_s"] / counters["iterations"] < 0.03
    engine.abort(None)
    engine.drain(10)
    assert summary(engine)["unfinished"] == 0


def test_places_are_filled_between_plans(start: Any) -> None:
    """While planning pauses, whoever is next in the plan's order takes the places that get free."""
    policy = {"_target_": "live_policies.Batch", "size": 4}
    engine = start(policy, adapter={"planner_share": 1e-9})
    for i in range(40):
        engine.add(str(i), [i] * 10, 3 + i % 7)
    batches = []
    engine.on_output = lambda output: batches.append(len(output.num_scheduled_tokens))
    for _ in range(30):
        engine.step()
    assert set(batches) == {4}
    assert len(engine.finished) > 15
    # Last come, first served, as the policy said.
    assert min(int(key) for key in engine.finished) > 15
    engine.drain(100)
    assert all(engine.replies[str(i)] == reference([i] * 10, 3 + i % 7) for i in range(40))


@pytest.mark.parametrize("broken", ["observe", "plan", "hide", "after"])
def test_a_bug_in_the_adapter(start: Any, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own is counted, and vLLM goes on by itself; nothing is lost."""
    from engine_adapter.observer import Observer
    from engine_adapter.queues import Queues

    owner, name = {
        "observe": (Observer, "iteration_starts"),
        "plan": (Observer, "snapshot"),
        "hide": (Queues, "_split"),
        "after": (Observer, "iteration_scheduled"),
    }[broken]
    works: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def fails_sometimes(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] % 5 == 4:
            raise RuntimeError("a bug")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, fails_sometimes)
    monkeypatch.setattr("engine_adapter.controller._RESCUE_MAX", 5)
    engine = start({"_target_": "live_policies.Random", "seed": 5}, asynchronous=True)
    traffic = Traffic(12)
    traffic.play(engine)
    traffic.check(engine)
    assert summary(engine)["events"]["adapter failed"] == 10, "ten times, then never again"


def test_background(start: Any) -> None:
    """Plans from another process are applied to the survivors, and their age is reported."""
    background = {
        "policy": {"_target_": "live_policies.Sleepy", "sleep_s": 0.002},
        "duty_cycle": 1.0,
        "max_age_s": 0.5,
    }
    engine = start(FCFS, asynchronous=True, adapter={"background": background})
    traffic = Traffic(10, requests=80, rate=0.3, aborts=0.05)
    engine.on_step = lambda _: time.sleep(0.002)
    rounds = 0
    while not summary(engine)["late_plans"]:
        # The process takes its time to start.
        engine.add(f"warm{rounds}", [1, 2, 3], 50)
        engine.add(f"more{rounds}", [1] * 500, 10)
        engine.drain(1000)
        rounds += 1
        assert rounds < 200
    counters = serve(engine, traffic)
    assert counters["late_plans"] > 5
    assert 0 < counters["late_age_s_max"] <= 0.5
    assert counters["late_age_s_sum"] > 0
    assert not counters["events"].get("background planner failed")


def test_newcomers_do_not_wait_for_the_background(start: Any) -> None:
    """
    While a plan of the background is followed, the fast policy lets newcomers in.

    A regression test: they waited for the next such plan, which with CBC cost a second.
    """
    newest = "live_policies.NewestFirst"
    background = {
        "policy": {"_target_": newest, "sleep_s": 0.5},
        "deadline_s": 5.0,
        "duty_cycle": 1.0,
        "max_age_s": 60.0,
    }
    engine = start({"_target_": newest}, adapter={"background": background})
    engine.on_step = lambda _: time.sleep(0.05)
    end_s, rounds = time.monotonic() + 60, 0
    while not summary(engine)["late_plans"]:
        if not engine.scheduler.has_requests():
            for _ in range(3):
                rounds += 1
                engine.add(f"old{rounds}", [rounds] * 200, 250)  # no prefix is shared
        engine.step()
        assert time.monotonic() < end_s, summary(engine)
    late_plans = summary(engine)["late_plans"]
    engine.add("new", [9, 8, 7] * 70, 20)
    for _ in range(6):
        engine.step()
    assert engine.replies["new"], engine.state()
    assert summary(engine)["late_plans"] == late_plans
    engine.on_step = None
    engine.drain(10**6)


def test_background_crashes(start: Any) -> None:
    """A background process that dies at every plan harms nobody."""
    background = {"policy": {"_target_": "live_policies.Sleepy", "dies": True}, "duty_cycle": 1.0}
    engine = start(ROUND_ROBIN, adapter={"background": background})
    engine.on_step = lambda _: time.sleep(0.001)
    end_s = time.monotonic() + 60
    rounds = 0
    while not summary(engine)["events"].get("background planner failed"):
        traffic = Traffic(rounds, requests=10)
        traffic.want = {f"{rounds}-{key}": value for key, value in traffic.want.items()}
        traffic.play(engine, most_steps=10**9)
        traffic.check(engine)
        rounds += 1
        assert time.monotonic() < end_s
    assert summary(engine)["late_plans"] == 0


def test_refuses_or_falls_back(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM lacks something, the adapter says what, and refuses or falls back as told."""
    from engine_adapter import internals
    from engine_adapter.probe import Requirement

    gone = (*internals.REQUIRED, Requirement("vllm.v1.request", "Request", ("gone",)))
    monkeypatch.setattr(internals, "REQUIRED", gone)
    with pytest.raises(internals.Incompatible, match=r"vLLM 0\.\S+ lacks .*Request\.gone"):
        start(FCFS)
    engine = start(FCFS, adapter={"on_mismatch": "fall_back"})
    assert engine.scheduler.andes is None
    traffic = Traffic(1, requests=10)
    traffic.play(engine)
    traffic.check(engine)


def test_untested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which everything is there but which was never tried is named."""
    from engine_adapter import internals

    assert internals.check_installed() is None
    monkeypatch.setattr(internals, "TESTED_VERSIONS", ("9.9.9",))
    remark = internals.check_installed()
    assert remark is not None and internals.installed_version() in remark


def test_priority_scheduling_is_refused(start: Any) -> None:
    """vLLM's priority queue and a policy would fight over the order."""
    from engine_adapter.internals import EngineView, Incompatible

    scheduler = start(FCFS).scheduler
    scheduler.waiting = [1]
    with pytest.raises(Incompatible, match="needs 'fcfs'"):
        EngineView(scheduler)


def test_report_is_written(start: Any, tmp_path: Any) -> None:
    """The counters are on disk while the engine runs and after it ends."""
    import json

    path = tmp_path / "adapter.json"
    engine = start(ROUND_ROBIN, adapter={"report_path": str(path)})
    serve(engine, Traffic(1, requests=10))
    assert json.loads(path.read_text())["iterations"] >= 1
    engine.scheduler.shutdown()
    report = json.loads(path.read_text())
    assert report["iterations"] == summary(engine)["iterations"]
    assert report["latency"]["samples"] > 10
