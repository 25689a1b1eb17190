"""Replay of CSV traces: what is read, what is refused, and in which words."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andes_opt.conversations import Conversations
from andes_opt.readers import fixed, reading
from andes_opt.trace import Trace, write_trace
from andes_opt.workload import Poisson, Requests, Workload

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "arrival_s,prompt_tokens,output_tokens"
FIELDS = ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s", "tds")


@pytest.fixture
def csv_file(tmp_path: Path) -> Any:
    """A function that writes text or bytes to a file and returns its path."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def assert_same(a: Requests, b: Requests) -> None:
    """All five arrays are equal to the last bit."""
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# --- What is read


def test_a_plain_trace(csv_file: Any) -> None:
    """Arrivals are shifted to 0; targets that the file lacks come from the readers."""
    path = csv_file(f"{HEADER}\n100.5,374,44\n101.0,396,109\n103.5,1,1\n")
    trace = Trace(path, readers=fixed(tds=4.0, ttft_s=2.0))
    assert isinstance(trace, Workload)
    requests = trace.generate(0)
    np.testing.assert_array_equal(requests.arrival_s, [0, 0.5, 3])
    np.testing.assert_array_equal(requests.prompt_tokens, [374, 396, 1])
    np.testing.assert_array_equal(requests.output_tokens, [44, 109, 1])
    np.testing.assert_array_equal(requests.ttft_s, [2, 2, 2])
    np.testing.assert_array_equal(requests.tds, [4, 4, 4])


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfarrival_s,prompt_tokens,output_tokens\n0,3,4\n1,5,6\n",
        b"arrival_s,prompt_tokens,output_tokens\r\n0,3,4\r\n1,5,6\r\n",
        b"arrival_s,prompt_tokens,output_tokens\r0,3,4\r1,5,6",
        b"prompt_tokens,model,output_tokens,arrival_s\n3,gpt,4,0\n5,,6,1\n",
        b"\narrival_s,prompt_tokens,output_tokens\n\n0,3,4\n\n1,5,6\n\n",
        b' arrival_s , "prompt_tokens",output_tokens\n 0 ,"3", 4\n1,5,6\n',
        b"arrival_s,prompt_tokens,output_tokens\n0.0,3.0,4e0\n1.0,5.0,6.0\n",
        b'arrival_s,prompt_tokens,output_tokens,note\n0,3,4,"a, b\nc"\n1,5,6,\xc3\xa9\n',
        b"arrival_s,prompt_tokens,output_tokens\n1,5,6\n0,3,4\n",
    ],
    ids=["bom", "crlf", "cr", "order", "blank", "spaces", "floats", "quotes", "unsorted"],
)
def test_spellings_of_one_trace(csv_file: Any, content: bytes) -> None:
    """Byte-order mark, line ends, column order, extra columns, quotes, row order: all the same."""
    requests = Trace(csv_file(content), readers=fixed()).generate(0)
    np.testing.assert_array_equal(requests.arrival_s, [0, 1])
    np.testing.assert_array_equal(requests.prompt_tokens, [3, 5])
    np.testing.assert_array_equal(requests.output_tokens, [4, 6])


def test_rows_of_one_moment_keep_their_order(csv_file: Any) -> None:
    """Sorting by arrival is stable."""
    rows = "".join(f"{5 - k // 10},{k + 1},1\n" for k in range(50))
    requests = Trace(csv_file(f"{HEADER}\n{rows}")).generate(0)
    expected = [10 * block + k + 1 for block in range(4, -1, -1) for k in range(10)]
    np.testing.assert_array_equal(requests.prompt_tokens, expected)


def test_targets_of_the_file_win(csv_file: Any) -> None:
    """Given targets are kept; empty cells and absent columns are filled, each on its own."""
    path = csv_file(f"{HEADER},tds\n0,3,4,7.5\n1,5,6,\n2,5,6,0.5\n")
    requests = Trace(path, readers=fixed(tds=4.0, ttft_s=0.5)).generate(0)
    np.testing.assert_array_equal(requests.tds, [7.5, 4, 0.5])
    np.testing.assert_array_equal(requests.ttft_s, [0.5, 0.5, 0.5])


def test_readers_depend_on_the_seed_alone(csv_file: Any) -> None:
    """The k-th request meets the k-th reader, as in every other workload of that seed."""
    rows = "".join(f"{k},5,5\n" for k in range(40))
    requests = Trace(csv_file(f"{HEADER}\n{rows}"), readers=reading()).generate(3)
    np.testing.assert_array_equal(requests.tds, Poisson(rate=1, requests=40).generate(3).tds)


def test_rates(csv_file: Any) -> None:
    """``rate`` sets the mean rate, ``rate_scale`` multiplies it, ``requests`` takes the first."""
    path = csv_file(f"{HEADER}\n" + "".join(f"{k * k},5,5\n" for k in range(11)))
    as_is = Trace(path).generate(0).arrival_s
    np.testing.assert_allclose(Trace(path, rate_scale=4.0).generate(0).arrival_s, as_is / 4)
    set_rate = Trace(path, rate=2.0).generate(0).arrival_s
    assert set_rate[-1] == pytest.approx(10 / 2.0)
    np.testing.assert_allclose(set_rate / set_rate[-1], as_is / as_is[-1])
    first = Trace(path, rate=2.0, requests=5).generate(0).arrival_s
    assert first.size == 5
    assert first[-1] == pytest.approx(4 / 2.0)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), n=st.integers(1, 30))
def test_what_is_written_is_read_back(tmp_path: Path, data: st.DataObject, n: int) -> None:
    """Any requests survive a CSV file to the last bit."""

    def draw(values: st.SearchStrategy[Any]) -> Any:
        return np.array(data.draw(st.lists(values, min_size=n, max_size=n)))

    arrival_s = np.sort(draw(st.floats(0, 1e6)))
    requests = Requests(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=draw(st.integers(1, 10**6)),
        output_tokens=draw(st.integers(1, 10**6)),
        ttft_s=draw(st.floats(0, 100)),
        tds=draw(st.floats(0.01, 100)),
    )
    path = tmp_path / "written.csv"
    write_trace(requests, path)
    assert_same(Trace(path).generate(0), requests)
    assert [p.name for p in tmp_path.iterdir()] == ["written.csv"]


# --- What is refused


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,1,1", "line 3, column arrival_s: 'x' not understood: need seconds >= 0."),
        (",1,1", "line 3, column arrival_s: '' not understood: need seconds >= 0."),
        ("nan,1,1", "line 3, column arrival_s: 'nan' not understood"),
        ("inf,1,1", "line 3, column arrival_s: 'inf' not understood"),
        ("-1,1,1", "line 3, column arrival_s: -1 < 0 not understood."),
        ("1_0,1,1", "line 3, column arrival_s: '1_0' not understood"),
        ("1,many,1", "column prompt_tokens: 'many' not understood: need a whole number >= 1."),
        ("1,0,1", "line 3, column prompt_tokens: 0 not understood: need a whole number >= 1."),
        ("1,-5,1", "line 3, column prompt_tokens: -5 not understood"),
        ("1,2.5,1", "line 3, column prompt_tokens: 2.5 not understood"),
        ("1,1,1e300", "line 3, column output_tokens: 1e300 not understood"),
        ("1,1,NaN", "line 3, column output_tokens: 'NaN' not understood"),
        ("1,1", "line 3, column output_tokens: the row has 2 fields, the header 3."),
        ("1", "line 3, column prompt_tokens: the row has 1 fields, the header 3."),
        ("1,1,1,9", "line 3: the row has 4 fields, the header 3."),
    ],
)
def test_bad_cells_are_named(csv_file: Any, row: str, words: str) -> None:
    """One sentence with file, line, column and the value."""
    path = csv_file(f"{HEADER}\n0,1,1\n{row}\n2,1,1\n")
    with pytest.raises(ValueError, match=r"trace\.csv, line 3") as caught:
        Trace(path).generate(0)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,1,1,-1,5", "line 2, column ttft_s: -1 < 0 not understood."),
        ("0,1,1,soon,5", "line 2, column ttft_s: 'soon' not understood: need seconds >= 0."),
        ("0,1,1,1,0", "line 2, column tds: 0 <= 0 not understood."),
        ("0,1,1,1,fast", "line 2, column tds: 'fast' not understood: need tokens/s > 0."),
    ],
)
def test_bad_targets_are_named(csv_file: Any, row: str, words: str) -> None:
    """Targets are checked like the rest."""
    path = csv_file(f"{HEADER},ttft_s,tds\n{row}\n")
    with pytest.raises(ValueError, match=r"trace\.csv") as caught:
        Trace(path).generate(0)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; need a header with arrival_s, prompt_tokens, output_tokens."),
        (b"\n\n", "is empty; need a header"),
        (HEADER.encode() + b"\n", "has a header but no requests."),
        (
            b"arrival_s,prompt_tokens\n0,1\n",
            "line 1 lacks column output_tokens; found arrival_s, prompt_tokens.",
        ),
        (b"0.0,374,44\n", "line 1 lacks column arrival_s, prompt_tokens, output_tokens; found 0.0"),
        (b"arrival_s;prompt_tokens;output_tokens\n0;1;1\n", "line 1 lacks column arrival_s"),
        (HEADER.encode() + b",arrival_s\n0,1,1,0\n", "line 1 names column arrival_s 2 times."),
        (HEADER.encode() + b"\n0,1,\xff\n", "is not UTF-8 text"),
        (HEADER.encode() + b'\n0,1,"' + b"1" * 200_000, "is not CSV"),
    ],
    ids=[
        "empty",
        "blank",
        "no rows",
        "missing",
        "no header",
        "semicolons",
        "twice",
        "bytes",
        "csv",
    ],
)
def test_files_that_are_no_traces(csv_file: Any, content: bytes, words: str) -> None:
    """One sentence names the file and what is wrong with it."""
    path = csv_file(content)
    with pytest.raises(ValueError, match=r"trace\.csv") as caught:
        Trace(path).generate(0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    """A file that is not there, or a folder, is said to be no trace file."""
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no trace file"):
            Trace(path).generate(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate = 0.0 not understood"),
        ({"rate_scale": -1.0}, "rate_scale = -1.0 not understood"),
        ({"rate": 1.0, "rate_scale": 2.0}, "exclude each other"),
        ({"requests": 0}, "requests = 0 not understood"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    """A bad option is refused by name and value, before the file is opened."""
    with pytest.raises(ValueError, match=words):
        Trace("x.csv", **options)


def test_more_than_the_file_holds(csv_file: Any) -> None:
    """Asking for more requests than there are is an error, as is a rate for a single moment."""
    path = csv_file(f"{HEADER}\n3,1,1\n3,1,1\n")
    with pytest.raises(ValueError, match=r"requests = 3, but .*trace\.csv holds 2"):
        Trace(path, requests=3).generate(0)
    with pytest.raises(ValueError, match=r"can't be reached: all 2 requests .* arrive at once"):
        Trace(path, rate=1.0).generate(0)
    assert Trace(path).generate(0).num_requests == 2


# --- What prompts share, and Mooncake's form


def test_sessions_of_a_trace(csv_file: Any) -> None:
    """Sessions are followed in order of arrival, whatever the order of the rows."""
    path = csv_file(
        f"{HEADER},session,prefix_tokens\n"
        "5,40,2,a,\n"  # goes on where the row below ended
        "0,30,4,a,\n"
        "1,30,4,,10\n"
        "2,30,4,b,10\n"
    )
    requests = Trace(path).generate(0)
    assert requests.prefix_of.tolist() == [-1, -1, 1, 0]
    assert requests.prefix_tokens.tolist() == [0, 0, 10, 34]
    assert Trace(path, requests=2).generate(0).prefix_of.tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_mooncakes_form(tmp_path: Path, name: str) -> None:
    """Milliseconds become seconds, and equal first ids a shared beginning."""
    rows = [
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 1500, "input_length": 1536, "output_length": 7, "hash_ids": [1, 2, 9]},
        {"timestamp": 3000, "input_length": 10, "output_length": 1},
    ]
    path = tmp_path / name
    text = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    requests = Trace(path).generate(0)
    assert requests.arrival_s.tolist() == [0.0, 0.5, 2.0]
    assert requests.output_tokens.tolist() == [5, 7, 1]
    assert requests.prefix_of.tolist() == [-1, 0, -1]
    assert requests.prefix_tokens.tolist() == [0, 1024, 0]


GOOD = '"timestamp": 0, "output_length": 5'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f'{{{GOOD}, "input_length": 600, "hash_ids": [1]}}', "1 ids for 600 tokens"),
        (f'{{{GOOD}, "input_length": 600, "hash_ids": [1, -2]}}', "whole numbers >= 0"),
        (f'{{{GOOD}, "input_length": 600, "hash_ids": [1, true]}}', "whole numbers >= 0"),
        (f'{{{GOOD}, "input_length": 600, "hash_ids": "12"}}', "whole numbers >= 0"),
        (f'{{{GOOD}, "input_length": 600, "hash_ids": [1, 1e400]}}', "whole numbers >= 0"),
        (f"{{{GOOD}}}", "lacks input_length"),
        (f'{{{GOOD}, "input_length": 0}}', "input_length"),
        (f'{{{GOOD}, "input_length": true}}', "input_length"),
        ("[1, 2]", "lacks timestamp"),
        ("{", "is no JSON"),
        ("", "is empty"),
    ],
)
def test_bad_lines_of_mooncakes_form(tmp_path: Path, line: str, words: str) -> None:
    """One sentence names the file, the line and what is wrong with it."""
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl") as caught:
        Trace(path).generate(0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip at all", gzip.compress(b"x" * 5000, mtime=0)[:40]], ids=["other", "cut"]
)
def test_a_file_that_gzip_did_not_write(tmp_path: Path, content: bytes) -> None:
    """A damaged or misnamed file is told in one sentence."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="gzip"):
        Trace(path).generate(0)


@pytest.mark.parametrize(
    ("cells", "words"),
    [("a,50,", "prefix_tokens"), ("a,x,", "prefix_tokens"), (",1,9", "prefix_of = 9")],
)
def test_bad_prefixes(csv_file: Any, cells: str, words: str) -> None:
    """More than the prompt has, what is no number, and a row that is not there."""
    path = csv_file(f"{HEADER},session,prefix_tokens,prefix_of\n0,30,4,{cells}\n")
    with pytest.raises(ValueError, match=words):
        Trace(path).generate(0)


def test_what_is_shared_is_written_and_read_again(tmp_path: Path) -> None:
    """Conversations survive as a trace, rows and all."""
    written = Conversations(rate=2.0, requests=60, system_prompt_tokens=30).generate(5)
    path = tmp_path / "chat.csv"
    write_trace(written, path)
    read = Trace(path).generate(0)
    assert_same(written, read)
    np.testing.assert_array_equal(written.prefix_of, read.prefix_of)
    np.testing.assert_array_equal(written.prefix_tokens, read.prefix_tokens)
