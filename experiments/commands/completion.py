"""``andes-opt completion``: commands, groups, options and values at the press of the tab key."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from experiments.commands.listing import EXTRA_KINDS, plural
from experiments.configuration.compose import groups, load
from experiments.configuration.experiment import experiments, studies
from experiments.configuration.launchers import LAUNCHERS, ONE_AT_A_TIME
from experiments.configuration.plain_arguments import PlainParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Asks ``candidates``; each script calls it with the line up to the cursor.
QUERY = "query"

_BASH = """\
_andes_opt() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    COMPREPLY=($(andes-opt completion query "$line" 2> /dev/null))
    # Bash replaces only what follows the last character that it takes for a break.
    local word="${line##*[[:space:]]}"
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    fi
}
complete -o default -o nospace -F _andes_opt andes-opt
"""

_ZSH = """\
#compdef andes-opt
_andes_opt() {
    local -a found
    found=("${(@f)$(andes-opt completion query "${(j: :)words[1,CURRENT]}" 2> /dev/null)}")
    if [[ -z "$found" ]]; then
        _files
    else
        compadd -Q -S '' -- "${found[@]}"
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _andes_opt andes-opt
"""

_FISH = """\
complete -c andes-opt -a '(andes-opt completion query (commandline -cp | string collect) \\
    2> /dev/null | string trim)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_EXAMPLES = """
eval "$(andes-opt completion bash)"                  # in ~/.bashrc
eval "$(andes-opt completion zsh)"                   # in ~/.zshrc
andes-opt completion fish > ~/.config/fish/completions/andes-opt.fish
"""


def candidates(line: str) -> list[str]:
    """
    Return how the last word of a command line could go on.

    Parameters
    ----------
    line
        The line up to the cursor, ``andes-opt simulate pol`` say.

    Returns
    -------
    list[str]
        Whole words; one that is complete ends with a space. Empty where file names fit.
    """
    from experiments.commands.registry import COMMANDS

    *before, word = _words(line)
    if len(before) < 2:
        found: Iterable[str] = [f"{name} " for name in (*COMMANDS, "--help", "--version")]
    elif before[1] not in COMMANDS:
        found = []
    elif COMMANDS[before[1]].hydra:
        found = _of_command(before[1], before[2:], word)
    elif before[1] == "study" and (study := experiments().get("".join(before[2:3]))):
        found = _of_command(study.command, [f"experiment={before[2]}", *before[3:]], word)
    else:
        found = [f"{name} " for name in _arguments(before[1]) if name not in before]
    return [name for name in found if name.startswith(word)]


def _words(line: str) -> list[str]:
    """Return the words of a line; the last one, perhaps empty, is being typed."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.replace("'", "").replace('"', "").split()
    return [*words, ""] if not words or line[-1].isspace() else words


def _arguments(command: str) -> Sequence[str]:
    if command == "list":
        return [*(plural(group) for group in groups()), *EXTRA_KINDS]
    if command == "study":
        return list(studies())
    if command == "completion":
        return list(SCRIPTS)
    if command == "report":
        return ["--baseline", "--output", "--request", "--help"]
    return []


def _of_command(command: str, before: Sequence[str], word: str) -> Iterable[str]:
    key, assigned, value = word.partition("=")
    known = groups()
    if not assigned:
        options = ["--multirun ", "--help ", "--cfg ", "--config-dir "]
        if word.startswith("-"):
            return options
        return _options(_configuration(command, before), key, known)
    names: Sequence[str]
    if key == "hydra/launcher":
        names = ["basic"] if command in ONE_AT_A_TIME else list(LAUNCHERS)
    elif key in known:
        names = known[key]
    else:
        config = _configuration(command, before)
        names = ["true", "false"] if _selected(config, key) in (True, False) else []
    # In a sweep values stand in a row: policy=fcfs,andes.
    head = value[: value.rfind(",") + 1]
    return [f"{key}={head}{name}" for name in names if name not in head.split(",")]


def _configuration(command: str, before: Sequence[str]) -> Mapping[str, Any]:
    """Compose the command's configuration under the groups chosen so far, if they make sense."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    known = groups()
    chosen = [word for word in before if word.partition("=")[0] in known and "," not in word]
    try:
        config = load(command, chosen)
    except HydraException:
        config = load(command)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return dict(plain)


def _options(
    config: Mapping[str, Any], key: str, known: Mapping[str, Sequence[str]]
) -> Iterable[str]:
    """Return options below the key's last dot: ``a.`` for those with parts, ``a=`` for others."""
    parent = key.rpartition(".")[0]
    node = _selected(config, parent) if parent else config
    prefix = f"{parent}." if parent else ""
    found = []
    for name, value in (node if isinstance(node, dict) else {}).items():
        if name.startswith("_"):
            continue
        if not parent and name in known:
            found.append(f"{name}=")
        found.append(f"{prefix}{name}.") if isinstance(value, dict) else found.append(
            f"{prefix}{name}="
        )
    if not parent:
        found += ["experiment=", "hydra/launcher=", "hydra.run.dir=", "hydra.sweep.dir="]
    return found


def _selected(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def main(arguments: Sequence[str]) -> None:
    """
    Print the script of a shell.

    Raises
    ------
    UsageError
        On no shell, an unknown one, or more than one.
    """
    if arguments and arguments[0] == QUERY:
        print("\n".join(candidates(" ".join(arguments[1:]))))
        return
    description = "Print a script that completes commands, groups, options and their values."
    parser = PlainParser("completion", description, _EXAMPLES)
    parser.add_argument("shell", choices=SCRIPTS, help="the shell to print it for")
    print(SCRIPTS[parser.parse_args(arguments).shell], end="")
