"""
vLLM's scheduler without the rest of vLLM: a configuration as for a GPU, and no weights.

The configuration is vLLM's own, of a model that is nothing but a small ``config.json``. Where
vLLM's platform without a GPU would switch something that a GPU has, it is set as on a GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from andes_opt.engine import EngineProfile

_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
RUNNERS = ("v1", "v2")

#: Flags of vLLM's cache that a scheduler without memory knows.
_CACHE_FLAGS = ("block_size", "enable_prefix_caching", "num_gpu_blocks_override")
#: Flags of vLLM's scheduler that other parts of vLLM look at, or that name its class.
_NO_FLAGS = {
    "disable_chunked_mm_input",
    "disable_hybrid_kv_cache_manager",
    "is_multimodal_model",
    "max_num_queued_reqs",
    "max_num_queued_tokens",
    "prefill_schedule_interval",
    "runner_type",
    "scheduler_cls",
    "stream_interval",
}
#: Fields of vLLM's configuration whose flags have another name.
_FLAG_OF = {"policy": "scheduling_policy"}


def write_tiny_config(folder: Path, *, positions: int = 2048) -> str:
    """A model folder with a config and nothing else."""
    config = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": positions,
        "word_embed_proj_dim": 64,
        "do_layer_norm_before": True,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@dataclass(frozen=True, slots=True)
class Options:
    """
    What a scheduler is made with, in the words of vLLM's configuration.

    Parameters
    ----------
    blocks
        Usable KV blocks; vLLM's own number counts one more, which nobody gets.
    block_tokens
        Tokens of a block.
    max_context
        Most tokens of a prompt with its reply; the KV cache may hold fewer.
    scheduler
        Fields of vLLM's ``SchedulerConfig``.
    prefix_caching
        Whether blocks are found again by their tokens.
    asynchronous
        Whether an iteration is scheduled while the one before runs, as on a GPU.
    """

    blocks: int
    block_tokens: int
    max_context: int
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    prefix_caching: bool = True
    asynchronous: bool = True

    @property
    def model_length(self) -> int:
        """vLLM's longest context, which has to fit into its KV cache for it to start."""
        return max(1, min(self.max_context, self.blocks * self.block_tokens))


def options_of(profile: EngineProfile, flags: Mapping[str, Any]) -> Options:
    """
    Returns what vLLM would be started with on an engine.

    Parameters
    ----------
    profile
        The engine.
    flags
        vLLM's own options by their flags' names, with hyphens or underscores; they win.

    Raises
    ------
    ValueError
        If there is no such flag, or one is given twice.
    """
    given = _given(flags)
    block_tokens = given.pop("block_size", profile.block_tokens)
    _whole("block-size", block_tokens)
    blocks = profile.capacity_tokens // block_tokens
    override = given.pop("num_gpu_blocks_override", None)
    if override is not None:
        _whole("num-gpu-blocks-override", override)
        blocks = override - 1
    max_context = given.pop("max_model_len", None)
    if max_context is None:
        max_context = profile.max_context_tokens
    _whole("max-model-len", max_context)
    asynchronous = given.pop("async_scheduling", None)
    prefix_caching = given.pop("enable_prefix_caching", None)
    budget = given.get("max_num_batched_tokens", profile.token_budget)
    scheduler = {
        "max_num_batched_tokens": profile.token_budget,
        # vLLM wants a token of the budget for each request.
        "max_num_seqs": min(profile.max_batch, budget) if isinstance(budget, int) else 1,
        **_of_profile(profile),
        **{_field_of(name): value for name, value in given.items()},
    }
    return Options(
        blocks=blocks,
        block_tokens=block_tokens,
        max_context=max_context,
        scheduler=scheduler,
        prefix_caching=True
        if prefix_caching is None
        else _switch("enable-prefix-caching", prefix_caching),
        asynchronous=True if asynchronous is None else _switch("async-scheduling", asynchronous),
    )


def _of_profile(profile: EngineProfile) -> dict[str, Any]:
    """The profile's rules of admission, as far as the installed vLLM has them."""
    from vllm.config import SchedulerConfig

    rules = {
        "watermark": profile.watermark,
        "scheduler_reserve_full_isl": profile.reserve_full_context,
    }
    known = {item.name for item in fields(SchedulerConfig)}
    return {name: value for name, value in rules.items() if name in known}


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags by their names with underscores; those that are null have vLLM's own default."""
    known = flag_names()
    given: dict[str, Any] = {}
    for flag, value in flags.items():
        name = str(flag).replace("-", "_")
        if name not in known:
            choices = ", ".join(known).replace("_", "-")
            raise ValueError(f"vllm.{flag} not understood: need one of {choices}.")
        if name in given:
            raise ValueError(f"vllm.{flag} is given twice.")
        given[name] = value
    return {name: value for name, value in given.items() if value is not None}


def flag_names() -> list[str]:
    """Returns the names of vLLM's flags that an emulated engine knows, with underscores."""
    from vllm.config import SchedulerConfig

    own = [item.name for item in fields(SchedulerConfig) if item.init]
    names = {_FLAG_OF.get(name, name) for name in own if name not in _NO_FLAGS}
    return sorted(names | {*_CACHE_FLAGS, "max_model_len"})


def _field_of(flag: str) -> str:
    return next((name for name, other in _FLAG_OF.items() if other == flag), flag)


def _whole(flag: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"vllm.{flag} = {value!r} not understood: need a whole number >= 1.")


def _switch(flag: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"vllm.{flag} = {value!r} not understood: need true or false.")
    return value


def find_class(name: str) -> type:
    """
    Returns a scheduler class by its dotted name, as vLLM's ``--scheduler-cls`` finds it.

    Raises
    ------
    ValueError
        If there is no such class, or it is no scheduler.
    """
    from vllm.v1.core.sched.interface import SchedulerInterface

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"scheduler_cls = {name} not understood: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, SchedulerInterface)):
        raise ValueError(
            f"scheduler_cls = {name} not understood: need a class that inherits from vLLM's "
            "SchedulerInterface."
        )
    return found


def stock_class(asynchronous: bool) -> type:
    """Returns the class that vLLM chooses by itself."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    chosen: type = AsyncScheduler if asynchronous else Scheduler
    return chosen


def build_scheduler(
    options: Options,
    scheduler_class: type,
    *,
    model: str | None = None,
    runner: str | None = None,
    additional_config: Mapping[str, Any] | None = None,
) -> Any:
    """
    Returns a scheduler of vLLM's, as the engine core makes it.

    Parameters
    ----------
    options
        The engine.
    scheduler_class
        Its class.
    model
        A folder with a ``config.json``; None for one that is made for it.
    runner
        The model runner whose protocol it speaks, ``"v1"`` or ``"v2"``; None for what vLLM
        finds on this machine.
    additional_config
        For plug-ins, as vLLM's ``--additional-config``.

    Raises
    ------
    ValueError
        If vLLM refuses an option.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    with tempfile.TemporaryDirectory() as folder:
        model = model or write_tiny_config(Path(folder), positions=options.model_length)
        config = _vllm_config(options, model, dict(additional_config or {}))
    # Not before: vLLM refuses a configuration for a runner that can't run on this machine.
    with _model_runner(runner):
        return scheduler_class(
            vllm_config=config,
            kv_cache_config=_kv_cache_config(options),
            structured_output_manager=StructuredOutputManager(config),
            block_size=options.block_tokens,
            log_stats=False,
        )


def _vllm_config(options: Options, model: str, additional_config: dict[str, Any]) -> Any:
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig

    try:
        config = VllmConfig(
            model_config=ModelConfig(
                model=model,
                tokenizer=model,
                skip_tokenizer_init=True,
                dtype="float32",
                max_model_len=options.model_length,
            ),
            scheduler_config=SchedulerConfig(
                max_model_len=options.model_length,
                is_encoder_decoder=False,
                async_scheduling=options.asynchronous,
                **options.scheduler,
            ),
            cache_config=CacheConfig(
                block_size=options.block_tokens, enable_prefix_caching=options.prefix_caching
            ),
            device_config=DeviceConfig("cpu"),
            additional_config=additional_config,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(_sentence(error)) from error
    # vLLM's CPU platform switches these off.
    config.scheduler_config.async_scheduling = options.asynchronous
    config.cache_config.enable_prefix_caching = options.prefix_caching
    config.cache_config.num_gpu_blocks = options.blocks + 1
    return config


def _sentence(error: Exception) -> str:
    """What vLLM says about an option, in one sentence."""
    if not hasattr(error, "errors"):  # not of pydantic's
        return " ".join(str(error).split())
    first = error.errors()[0]
    said = " ".join(str(first["msg"]).split()).removeprefix("Value error, ")
    if not first["loc"]:
        return said
    flag = str(first["loc"][0])
    flag = _FLAG_OF.get(flag, flag).replace("_", "-")
    return f"vllm.{flag} = {first['input']!r} not understood: {said}."


def _kv_cache_config(options: Options) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(
        block_size=options.block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return KVCacheConfig(
        num_blocks=options.blocks + 1,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )


@contextmanager
def _model_runner(runner: str | None) -> Iterator[None]:
    """Let vLLM choose a model runner, here of which there is none, by its variable."""
    before = os.environ.get(_RUNNER_VARIABLE)
    if runner is not None:
        os.environ[_RUNNER_VARIABLE] = str(RUNNERS.index(runner))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_RUNNER_VARIABLE, None)
        else:
            os.environ[_RUNNER_VARIABLE] = before


def make_scheduler(
    model: str,
    scheduler_class: Any,
    *,
    blocks: int = 40,
    block_tokens: int = 16,
    max_batch: int = 16,
    token_budget: int = 128,
    max_context: int = 512,
    asynchronous: bool = False,
    prefix_caching: bool = True,
    chunked_prefill: bool = True,
    reserve_full_context: bool = True,
    watermark: float = 0.0,
    additional_config: dict[str, Any] | None = None,
) -> Any:
    """A small scheduler of vLLM's, for tests: ``blocks`` usable KV blocks."""
    options = Options(
        blocks=blocks,
        block_tokens=block_tokens,
        max_context=max_context,
        scheduler={
            "max_num_seqs": max_batch,
            "max_num_batched_tokens": token_budget if chunked_prefill else max_context,
            "enable_chunked_prefill": chunked_prefill,
            "scheduler_reserve_full_isl": reserve_full_context,
            "watermark": watermark,
        },
        prefix_caching=prefix_caching,
        asynchronous=asynchronous,
    )
    return build_scheduler(
        options, scheduler_class, model=model, additional_config=additional_config
    )
