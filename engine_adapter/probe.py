"""Which classes, methods and attributes a vLLM source has, without importing it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Requirement:
    """
    What one class must have.

    Parameters
    ----------
    module
        Dotted name of the module, such as ``vllm.v1.request``.
    cls
        Name of the class in it.
    names
        Methods, properties, class attributes or attributes set on ``self``.
    calls
        Positional parameters that we pass to a method (without ``self``): it must take
        them by these names and need no others.
    """

    module: str
    cls: str
    names: tuple[str, ...]
    calls: tuple[tuple[str, tuple[str, ...]], ...] = ()


#: A class as found in a source: its names, and for each method its parameters
#: (without ``self``) and how many of them have no default.
ClassNames = dict[str, tuple[list[str], int] | None]


def classes_in(source: str) -> dict[str, ClassNames]:
    """
    The classes at the top of a source, with everything defined in them.

    Parameters
    ----------
    source
        Python source text.

    Returns
    -------
    dict[str, ClassNames]
        Class name to names; a method maps to (parameters, how many are required), anything
        else to None.
    """
    found: dict[str, ClassNames] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _names_in(node)
    return found


def missing(
    requirements: tuple[Requirement, ...],
    lookup: Callable[[str], Mapping[str, ClassNames] | None],
) -> list[str]:
    """
    What a vLLM lacks.

    Parameters
    ----------
    requirements
        What is needed.
    lookup
        Module name to its classes (:func:`classes_in`); None if there is no such module.

    Returns
    -------
    list[str]
        One phrase for each thing that is missing or has another signature; empty if all
        is there.
    """
    problems: list[str] = []
    for need in requirements:
        classes = lookup(need.module)
        where = f"{need.module}.{need.cls}"
        if classes is None:
            problems.append(f"module {need.module}")
            continue
        if need.cls not in classes:
            problems.append(f"class {where}")
            continue
        names = classes[need.cls]
        problems += [f"{where}.{name}" for name in need.names if name not in names]
        for method, passed in need.calls:
            signature = names.get(method)
            if signature is None:
                continue  # reported above as missing
            parameters, required = signature
            if tuple(parameters[: len(passed)]) != passed or required > len(passed):
                problems.append(f"{where}.{method}({', '.join(passed)})")
    return problems


def _names_in(node: ast.ClassDef) -> ClassNames:
    names: ClassNames = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = [a.arg for a in (*item.args.posonlyargs, *item.args.args)]
            parameters = parameters[1:] if parameters[:1] == ["self"] else parameters
            optional = len(item.args.defaults)
            forced = sum(default is None for default in item.args.kw_defaults)
            names[item.name] = (parameters, max(0, len(parameters) - optional) + forced)
            for inner in ast.walk(item):
                if (
                    isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and isinstance(inner.value, ast.Name)
                    and inner.value.id == "self"
                ):
                    names.setdefault(inner.attr, None)
        else:
            for target in ast.walk(item):
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    names.setdefault(target.id, None)
    return names
