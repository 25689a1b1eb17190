"""
vLLM's own ``serve`` command, after a look at its flags: ``python -m engine_adapter.serve MODEL``.

vLLM's ``vllm serve`` asks for a distribution that is named vllm, which the CPU wheel's is not, and
its other entry point leaves out flags for several API servers and several machines. Here its
subcommand runs as it is. What our scheduler can't do is told before an engine starts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEDULERS = (
    "engine_adapter.scheduler.AndesScheduler",
    "engine_adapter.scheduler.AndesSyncScheduler",
)


def main(words: Sequence[str]) -> None:
    """
    Run vLLM's ``serve`` until it ends.

    Parameters
    ----------
    words
        Its arguments: the model and vLLM's flags.

    Raises
    ------
    SystemExit
        With 2 and a sentence on standard error if the arguments are wrong.
    """
    from engine_adapter.internals import serve_command

    # vLLM and its libraries look up here which command runs, in child processes, too.
    sys.argv = ["vllm", "serve", *words]
    try:
        arguments, run = serve_command()
        complaint = complaint_about(arguments)
    except (ValueError, TypeError, ImportError) as error:
        complaint = " ".join(str(error).split())
    if complaint is not None:
        print(f"andes-opt serve: {complaint}", file=sys.stderr)
        raise SystemExit(2)
    run(arguments)


def complaint_about(arguments: Any) -> str | None:
    """
    Returns what our scheduler can't do about parsed arguments of vLLM's ``serve``.

    Parameters
    ----------
    arguments
        The namespace; a file named by ``--config`` is in it.

    Returns
    -------
    str | None
        A sentence; None if nothing is in the way, or another scheduler is chosen.
    """
    from engine_adapter.internals import Incompatible, check_installed, order_complaint
    from engine_adapter.settings import KEY, read_settings

    if str(getattr(arguments, "scheduler_cls", None)) not in _SCHEDULERS:
        return None
    try:
        settings = read_settings(getattr(arguments, "additional_config", None))
        if settings.on_mismatch == "refuse":
            check_installed()
            return order_complaint(arguments.scheduling_policy)
    except ValueError as error:
        return f"--additional-config: {error}"
    except Incompatible as error:
        return f"{error} {KEY}.on_mismatch=fall_back starts vLLM's own scheduling instead."
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
