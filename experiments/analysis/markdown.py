"""Tables for terminals and Markdown files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.configuration.output import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl


def markdown(table: pl.DataFrame, decimals: dict[str, int]) -> str:
    """
    Return a table that reads well as plain text and renders as Markdown.

    Parameters
    ----------
    table
        The table; text columns are aligned left, numbers right.
    decimals
        Column name -> decimals; columns not named are shown as they are.
    """
    cells = [
        [_cell(value, decimals.get(name)) for name, value in zip(table.columns, row, strict=True)]
        for row in table.iter_rows()
    ]
    names = [_cell(name, None) for name in table.columns]
    right = [dtype.is_numeric() for dtype in table.dtypes]
    widths = [
        max(3, len(name), *(len(row[k]) for row in cells)) if cells else max(3, len(name))
        for k, name in enumerate(names)
    ]
    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, right, strict=True)
    ]
    lines = [_line(names, widths, right), _line(rule, widths, right)]
    lines += [_line(row, widths, right) for row in cells]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    ]
    return f"| {' | '.join(padded)} |"


def _cell(value: Any, decimals: int | None) -> str:
    if value is None:
        return "-"
    if decimals is not None:
        return f"{value:.{decimals}f}"
    # A cell is one line, and a bar in it would end it.
    return visible(" ".join(str(value).split("\n"))).replace("|", "\\|")
