"""The files of ``conf/experiment``: which command each belongs to, and which are studies."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.configuration.compose import CONF_DIR, first_comment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hydra.conf import HydraConf

#: A node that makes an experiment a study, or a file of conf/study, which brings one.
_STUDY = re.compile(r"^(study|portfolio|live_study|live_fidelity):|^ *- /study: ", re.MULTILINE)
#: Another experiment that a file's list of defaults builds on.
_BASE = re.compile(r"^ *- (?:/?experiment/)?(\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Experiment:
    """
    A file of ``conf/experiment``.

    Parameters
    ----------
    command
        The command whose configuration it changes; empty if its first line names none.
    meaning
        What it is about, in a line.
    node
        The node with the study's options; empty if the file is no study.
    """

    command: str
    meaning: str
    node: str

    @property
    def is_study(self) -> bool:
        """Return whether ``andes-opt study`` runs it."""
        return bool(self.node)


def experiments(conf_dirs: Sequence[Path] = (CONF_DIR,)) -> dict[str, Experiment]:
    """
    Return the experiments of some configuration folders by name.

    Parameters
    ----------
    conf_dirs
        Folders to look into; files of later ones replace those of the earlier ones.
    """
    paths = {
        path.stem: path
        for folder in conf_dirs
        for path in sorted((folder / "experiment").glob("*.yaml"))
    }
    found = {}
    for name, path in paths.items():
        comment = first_comment(path)
        command, _, meaning = comment.partition(": ")
        if not (CONF_DIR / f"{command}.yaml").exists():  # any other sentence of the user's
            command, meaning = "", comment
        found[name] = Experiment(command, meaning, _node(name, paths))
    return found


def studies() -> dict[str, str]:
    """Return the names of the studies, and what each is about."""
    return {name: entry.meaning for name, entry in experiments().items() if entry.is_study}


def _node(name: str, paths: Mapping[str, Path]) -> str:
    text = paths[name].read_text(encoding="utf-8", errors="replace")
    if found := _STUDY.search(text):
        return found[1] or "study"
    bases = [base for base in _BASE.findall(text) if base in paths and base != name]
    return next(filter(None, (_node(base, paths) for base in bases)), "")


def study_command(hydra_config: HydraConf) -> str:
    """Return the command line of the study that is being made, as its document quotes it."""
    name = hydra_config.runtime.choices["experiment"]
    words = [word for word in hydra_config.overrides.task if not word.startswith("experiment=")]
    return shlex.join(["andes-opt", "study", str(name), *words])


def documents_folder(hydra_config: HydraConf, node: str, docs: str | None) -> str | None:
    """
    Return the folder whose ``results/`` get a study's document beside the run's folder.

    Parameters
    ----------
    hydra_config
        Hydra's part of the configuration.
    node
        The study's node, ``study`` or ``live_study`` say.
    docs
        Its option ``docs``.

    Returns
    -------
    str or None
        None if the command line changes what the study's file says, unless it names the folder:
        a shorter study must not take the place of the whole one.
    """
    words = hydra_config.overrides.task
    aside = tuple(f"{node}.{option}=" for option in ("cells", "runs", "minutes", "part"))
    asked = any(word.startswith(f"{node}.docs=") for word in words)
    whole = all(word.startswith(("experiment=", "sweep.", *aside)) for word in words)
    return docs if asked or whole else None
