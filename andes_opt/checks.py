"""Checks of constructor arguments: each refuses a bad value in one sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real


def positive(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a finite number > 0."""
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} = {value!r} not understood: need a number > 0.")


def non_negative(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0."""
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"{name} = {value!r} not understood: need a number >= 0.")


def seed(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a whole number >= 0 that rows can hold."""
    whole(name, value, 0)
    if isinstance(value, Integral) and int(value) >= 2**63:
        raise ValueError(f"{name} = {value!r} not understood: need a whole number < 2**63.")


def share(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a number in (0, 1]."""
    if not (isinstance(value, Real) and 0 < float(value) <= 1):
        raise ValueError(f"{name} = {value!r} not understood: need (0, 1].")


def fraction(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1)."""
    if not (isinstance(value, Real) and 0 <= float(value) < 1):
        raise ValueError(f"{name} = {value!r} not understood: need [0, 1).")


def whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number >= ``least``."""
    if not (isinstance(value, Integral) and int(value) >= least):
        raise ValueError(f"{name} = {value!r} not understood: need a whole number >= {least}.")
