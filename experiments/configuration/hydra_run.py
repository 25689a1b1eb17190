"""A command with a configuration file run by Hydra, and its errors told in one sentence."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from experiments.configuration.errors import RunsFailed, one_line
from experiments.configuration.launchers import lost_process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omegaconf import DictConfig

#: Set to 1 by a user who wants tracebacks; while Hydra runs, by this module.
TRACEBACKS = "HYDRA_FULL_ERROR"


def run_by_hydra(
    command: str, arguments: Sequence[str], load_run: Callable[[], Callable[[DictConfig], object]]
) -> None:
    """
    Check the arguments, then let Hydra compose the configuration and run.

    Parameters
    ----------
    command
        The command whose configuration file is composed.
    arguments
        Its overrides, and Hydra's own options.
    load_run
        Imports and returns what makes a run of a configuration.

    Raises
    ------
    UsageError
        On the first argument that is wrong.
    RunsFailed
        If the process of a run died.
    """
    import hydra

    from experiments.configuration.compose import CONF_DIR, see_current_folder, understood
    from experiments.configuration.overrides import (
        beside_overrides,
        check_overrides,
        for_hydra,
        help_template,
        hydra_options,
    )
    from experiments.configuration.values import quoted

    see_current_folder()
    words = understood(command, for_hydra(arguments))
    check_overrides(command, words)
    if (options := hydra_options(words)).help:
        study = any(word.startswith("experiment=") for word in options.overrides)
        template = quoted(help_template(command, study=study))
        words = beside_overrides(words, [f"hydra.help.template={template}"])
    argv, setting = sys.argv, os.environ.get(TRACEBACKS)
    sys.argv = [f"andes-opt {command}", *words]
    # Hydra prints errors itself, in many lines, unless this asks it to raise them.
    os.environ[TRACEBACKS] = "1"
    try:
        wrap = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=command)
        wrap(load_run())()
    except Exception as error:
        if not lost_process(error):
            raise
        raise RunsFailed(
            f"the process of a run died ({one_line(error).split('. ')[0]}). What is complete "
            "stays: go on with sweep.resume=true hydra.sweep.dir=FOLDER."
        ) from error
    finally:
        sys.argv = argv
        if setting is None:
            del os.environ[TRACEBACKS]
        else:
            os.environ[TRACEBACKS] = setting
