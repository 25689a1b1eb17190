"""Whether a file of ``live_engine``, one of the user's own say, has what a live run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from experiments.configuration.compose import load_choice
from experiments.configuration.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_GROUP = "live_engine"
_CLASS = "experiments.live.engine.LiveEngine"
#: Key -> what it needs.
_NEEDED = {
    "_target_": _CLASS,
    "name": "what results call the engine",
    "model": "a mapping whose _target_ is a class of experiments.live.models",
    "flags": "a mapping of vLLM's flags, {} for none",
    "profile": "a mapping whose _target_ is andes_opt.engine.EngineProfile",
    "saturated_tokens_per_s": "null as long as it is unknown",
}
_MAPPINGS = ("model", "flags", "profile")
#: Of these, those that are built.
_BUILT = ("model", "profile")


def check_engine(name: str, node: DictConfig | None = None) -> None:
    """
    Refuse an engine's file in which a key is missing that every run reads.

    Runs read ``live_engine.name`` and others before the engine is built, so that no constructor
    would get to say what is missing. An engine of another class has other keys, and is not looked
    at.

    Parameters
    ----------
    name
        Of the file, without ``.yaml``.
    node
        What came of it in a run's configuration, where overrides may have added keys; None for
        the file as it is.

    Raises
    ------
    UsageError
        If there is no such file, or something is missing in it.
    """
    if node is None:
        node = load_choice(_GROUP, name)
    plain: Any = OmegaConf.to_container(node, resolve=False)
    if plain.get("_target_", _CLASS) != _CLASS:
        return
    lacking = [f"{key} ({need})" for key, need in _NEEDED.items() if not _has(plain, key)]
    if lacking:
        raise UsageError(
            f"{_GROUP}/{name}.yaml lacks {', '.join(lacking)}: start from a copy of "
            f"conf/{_GROUP}/opt_tiny.yaml, which has all that an engine needs."
        )


def check_chosen(config: DictConfig) -> None:
    """
    Check the engine that a run's configuration has.

    Parameters
    ----------
    config
        Of ``andes-opt live``, within its run.

    Raises
    ------
    UsageError
        As :func:`check_engine` does.
    """
    check_engine(str(HydraConfig.get().runtime.choices[_GROUP]), config.live_engine)


def _has(plain: dict[str, Any], key: str) -> bool:
    value = plain.get(key)
    if value == "???":
        return False
    if isinstance(value, str) and value.startswith("${"):
        return True  # whoever resolves it will see
    if key in _MAPPINGS:
        return isinstance(value, dict) and (key not in _BUILT or "_target_" in value)
    return key in plain if key == "saturated_tokens_per_s" else value is not None
