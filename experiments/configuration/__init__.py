"""What a command is told: ``conf/``, overrides, launchers, and errors in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.configuration.compose import CONF_DIR, build, load

__all__ = ["CONF_DIR", "build", "load"]


def __getattr__(name: str) -> object:
    # On first use: Hydra takes a while to import, and `andes-opt --help` needs none of it.
    if name in __all__:
        from experiments.configuration import compose

        return getattr(compose, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
