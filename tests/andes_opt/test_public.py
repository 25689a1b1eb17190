"""The package's public surface."""

from __future__ import annotations

import andes_opt


def test_every_public_name_is_there() -> None:
    """Each name that the package promises can be imported from it, and none is forgotten."""
    for name in andes_opt.__all__:
        assert getattr(andes_opt, name).__name__ == name
        assert name in dir(andes_opt)
    assert sorted(andes_opt.__all__) == sorted(andes_opt._HOMES)  # noqa: SLF001


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not there fails as in any module."""
    assert not hasattr(andes_opt, "nonsense")
