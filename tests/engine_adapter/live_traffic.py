"""Random requests for a stepped engine, and the checks that all have what they asked for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from live_stepping import reference

if TYPE_CHECKING:
    from live_stepping import Engine

FCFS = {"_target_": "andes_opt.policy.fcfs.FCFS"}
ROUND_ROBIN = {"_target_": "andes_opt.policy.round_robin.RoundRobin", "quantum_tokens": 6}


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
