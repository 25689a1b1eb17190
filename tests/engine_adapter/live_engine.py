"""
A real vLLM engine with a small model, run as a process of its own.

    python live_engine.py MODEL RESULT.json '{"asynchronous": false, "requests": 200, ...}'

Starts vLLM with our scheduler, as a user would, serves random traffic under a rough policy; then
puts vLLM's own scheduler into the same engine and serves the same traffic again.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
sys.path.insert(0, str(Path(__file__).parent))


def serve(engine: Any, options: dict[str, Any], name: str) -> dict[str, Any]:
    """Serve the traffic of a seed; tokens and log-probabilities of every stream."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rng = random.Random(options["seed"])
    vocabulary = range(10, 2000)
    shared = [rng.choices(vocabulary, k=96) for _ in range(3)]
    pending = []
    for i in range(options["requests"]):
        prefix = rng.choice(shared) if rng.random() < 0.4 else []
        prompt = prefix + rng.choices(vocabulary, k=rng.randint(1, 80))
        pending.append((f"{name}-{i}", prompt, rng.randint(1, 40), rng.random() < 0.05))
    streams: dict[str, list[int]] = {key: [] for key, *_ in pending}
    margins: dict[str, list[float]] = {key: [] for key, *_ in pending}
    to_abort = {key for key, _, _, hangs_up in pending if hangs_up}
    finished, steps = [], 0
    while pending or engine.has_unfinished_requests():
        while pending and rng.random() < 0.5:
            key, prompt, tokens, _ = pending.pop(0)
            # Every other reader has a target of his own, every tenth an absurd one.
            count = len(pending)
            target = {"ttft_s": 0.5, "tds": 8} if count % 2 else None
            target = {"ttft_s": -1, "tds": "fast"} if count % 10 == 0 else target
            params = SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=2,
                extra_args=target,
                output_kind=RequestOutputKind.DELTA,
            )
            engine.add_request(key, {"prompt_token_ids": prompt}, params)
        for output in engine.step():
            completion = output.outputs[0]
            streams[output.request_id] += completion.token_ids
            for logprobs in completion.logprobs:
                best = sorted((v.logprob for v in logprobs.values()), reverse=True)
                margins[output.request_id].append(best[0] - best[1])
            if output.finished:
                finished.append(output.request_id)
        for key in [key for key in to_abort if len(streams[key]) >= 3]:
            engine.abort_request([key])
            to_abort.discard(key)
        steps += 1
        if steps > 50_000:
            raise SystemExit(f"stuck after {len(finished)} requests")
    strip = len(name) + 1
    return {
        "streams": {key[strip:]: tokens for key, tokens in streams.items()},
        "margins": {key[strip:]: values for key, values in margins.items()},
        "finished": [key[strip:] for key in finished],
        "steps": steps,
    }


def main(model: str, result: str, options: dict[str, Any]) -> None:
    """Serve with our scheduler, then with vLLM's."""
    from vllm import LLM

    if options["asynchronous"]:
        _allow_async()
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        gpu_memory_utilization=0.3,  # of a GPU: two tests may share it
        block_size=32,
        num_gpu_blocks_override=options["blocks"],
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        enable_prefix_caching=True,
        seed=0,
        async_scheduling=options["asynchronous"],
        scheduler_cls="engine_adapter.scheduler.AndesScheduler",
        additional_config={"andes_opt": {"planning_share_limit": 1.0, "policy": options["policy"]}},
    )
    engine = llm.llm_engine
    core = engine.engine_core.engine_core
    ours = core.scheduler
    config = core.vllm_config
    out: dict[str, Any] = {"depth": config.max_concurrent_batches}
    out["ours"] = serve(engine, options, "ours")

    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    while ours.has_requests() or core.batch_queue:
        engine.step()
        core.step_fn()
    out["adapter"] = ours.andes.summary()
    ours.reset_prefix_cache()
    # Older versions have one size of blocks, and no option for another.
    sizes = {"hash_block_size": ours.hash_block_size} if hasattr(ours, "hash_block_size") else {}
    core.scheduler = (AsyncScheduler if options["asynchronous"] else Scheduler)(
        vllm_config=config,
        kv_cache_config=ours.kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        block_size=ours.block_size,
        log_stats=False,
        **sizes,
    )
    out["stock"] = serve(engine, options, "stock")
    Path(result).write_text(json.dumps(out))


def _allow_async() -> None:
    """The CPU platform switches asynchronous scheduling off; let it stand."""
    from vllm.platforms import current_platform

    original = type(current_platform).check_and_update_config

    def check(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        original(config)
        config.scheduler_config.async_scheduling = wanted

    type(current_platform).check_and_update_config = classmethod(check)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
