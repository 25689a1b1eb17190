"""Files that are read from anywhere, and written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andes_opt.calibration import read_iterations
from andes_opt.files import csv_rows, open_text, written_whole
from andes_opt.instance import Instance
from andes_opt.lengths import load_tables
from andes_opt.trace import Trace

if TYPE_CHECKING:
    from pathlib import Path

TRACE = b"arrival_s,prompt_tokens,output_tokens\n0,3,4\n1,5,6\n"
ITERATIONS = b"batch,context_tokens,prefill_tokens,seconds\n1,2,3,0.5\n2,3,4,0.6\n"
PIECES = [
    *(b",", b'"', b"\r", b"\n", b"\x00", b"\xef\xbb\xbf", b"nan", b"0", b"1", b"-1"),
    *(b"5e-324", b"1e308", b"1e999", TRACE[:38], TRACE, ITERATIONS[:44]),
]


def through_a_pipe(path: Path, content: bytes) -> None:
    """Make a named pipe into which a thread writes once somebody reads."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()


def test_a_trace_may_be_packed_piped_or_at_home(tmp_path, monkeypatch):
    """``.csv.gz``, ``<(zcat FILE)`` and ``~/FILE`` give what the file itself gives."""
    (tmp_path / "plain.csv").write_bytes(TRACE)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(TRACE))
    through_a_pipe(tmp_path / "pipe", TRACE)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [tmp_path / "plain.csv", tmp_path / "packed.csv.gz", tmp_path / "pipe", "~/plain.csv"]
    for path in paths:
        requests = Trace(path).generate(0)
        np.testing.assert_array_equal(requests.prompt_tokens, [3, 5])


def test_iterations_are_read_like_traces(tmp_path):
    """The same reader: packed, with long cells of other columns, with rows of nothing."""
    long = b"x" * 200_000
    header, *rows = ITERATIONS.split()
    lines = [header + b",note,,", *(row + b"," + long + b",," for row in rows), b",,,,,", b""]
    path = tmp_path / "iterations.csv.gz"
    path.write_bytes(gzip.compress(b"\r\n".join(lines)))
    assert read_iterations(path).seconds.tolist() == [0.5, 0.6]


@pytest.mark.parametrize(
    "content",
    [
        TRACE + b",,\n,,\n\n , ,\n",
        TRACE.replace(b"\n", b",,\n"),
        TRACE.replace(b"4\n", b"4,,\n"),
        TRACE.replace(b"tokens\n", b"tokens,,\n"),
        TRACE.replace(b"tokens\n", b"tokens,text\n").replace(b"4\n", b"4," + b"y" * 140_000 + b"\n")
        .replace(b"6\n", b"6,\n"),
    ],
    ids=["empty rows", "everywhere", "a row", "header", "long cell"],
)  # fmt: skip
def test_what_spreadsheets_add_is_passed_over(content, tmp_path):
    """Rows and cells of nothing, and texts of any length in columns that nobody reads."""
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    limit = csv.field_size_limit()
    np.testing.assert_array_equal(Trace(path).generate(0).output_tokens, [4, 6])
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv.gz", b"no gzip", "a.csv.gz can't be unpacked"),
        ("a.csv.gz", gzip.compress(TRACE, mtime=0)[:-9], "a.csv.gz can't be unpacked"),
        ("a.csv", TRACE + b"\xff,,,\n", "a.csv is not UTF-8 text"),
        ("a.csv", TRACE + b"1,3000000000,1\n", "need a whole number >= 1 and <= 2147483648"),
        ("a.csv", TRACE + b"1,1\n", "line 4, column output_tokens: the row has 2 fields"),
        ("a.csv", TRACE + b"1,1,1,1\n", "line 4: the row has 4 fields, the header 3"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", TRACE.replace(b"4\n", b'4,"never closed\n'), "is not CSV"),
    ],
)
def test_what_can_not_be_read_is_named(name, content, words, tmp_path):
    """One sentence with the file, and the line where there is one."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        Trace(path).generate(0)
    assert str(path) in str(error.value)


#: A busy machine draws slowly.
_UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, suppress_health_check=_UNCHECKED)
@given(
    content=st.binary(max_size=80)
    | st.lists(
        st.sampled_from(PIECES),
        max_size=20,
    ).map(b"".join),
    packed=st.booleans(),
    rate=st.none() | st.floats(1e-300, 1e300),
)
def test_any_bytes_are_read_or_refused_by_name(content, packed, rate, tmp_path):
    """Traces, iterations, tables and instances: a value or a ValueError that names the file."""
    path = tmp_path / ("any.csv.gz" if packed else "any.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    for read in (lambda: Trace(path, rate=rate).generate(0), lambda: read_iterations(path)):
        try:
            read()
        except ValueError as error:
            assert "any.csv" in str(error) or "rate" in str(error)
    for load in (lambda: load_tables(str(path)), lambda: Instance.load(path)):
        with pytest.raises(ValueError, match=r"any\.csv"):
            load()


MOONCAKE = {"timestamp": 5, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}
FIELDS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@settings(max_examples=200, suppress_health_check=_UNCHECKED)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(sorted(MOONCAKE)), FIELDS), max_size=3),
    noise=st.sampled_from([b"", b"\n", b"[" * 100_000, b"{", b"\xff", b"null", b'"x"', b"7"]),
)
def test_any_lines_of_json_are_read_or_refused_by_name(rows, noise, tmp_path):
    """Mooncake's traces with fields of any kind, or with lines that are none."""
    path = tmp_path / "any.jsonl"
    lines = [json.dumps(MOONCAKE | row).encode() for row in rows]
    path.write_bytes(b"\n".join([*lines, noise]))
    try:
        requests = Trace(path).generate(0)
        assert requests.num_requests == len(rows)
    except ValueError as error:
        assert "any.jsonl" in str(error)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_there_whole_or_not_at_all(error, tmp_path):
    """Whatever stops the writing, the old file stays and nothing half-written is left."""
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def fail():
        with written_whole(path) as partial:
            assert partial.suffix == ".txt"
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    with written_whole(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["kept.txt"]


def test_nothing_there_is_said(tmp_path):
    """With the word for what was looked for."""
    with pytest.raises(FileNotFoundError, match="there is no trace file"):
        Trace(tmp_path / "none.csv").generate(0)
    with pytest.raises(FileNotFoundError, match="there is no file"), open_text(tmp_path / "none"):
        pass
    assert next(csv_rows(_written(tmp_path, b"b, a\n1,2\n"), ["a"], ["c"]))[1] == ["2", ""]


def _written(folder: Path, content: bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content)
    return path
