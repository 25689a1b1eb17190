"""What is printed never costs what it is about."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.configuration.output import CarefulStream, careful_output, visible


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    """Control characters and marks of direction are spelled out, line ends and letters stay."""
    shown = visible(text)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    if text.isprintable():
        assert shown == text


def test_escape_sequences_are_spelled_out():
    """As Python writes them."""
    assert visible("a\x1b[2J\x9b\u202eü中\n") == "a\\x1b[2J\\x9b\\u202eü中\n"


def test_letters_that_the_encoding_lacks_are_spelled_out():
    """Latin-1 has no Chinese; nothing else of the text changes."""
    raw = io.BytesIO()
    stream = CarefulStream(io.TextIOWrapper(raw, encoding="latin-1", newline="\n"))
    print("ü: 中", file=stream, flush=True)
    assert raw.getvalue() == b"\xfc: \\u4e2d\n"
    assert stream.trouble is None


def test_a_full_device_is_a_remark(capsys):
    """What can't be written is said once, on standard error, and nothing is raised."""
    with open("/dev/full", "w") as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with careful_output("andes-opt x") as out:
            for _ in range(3):
                print("lost", flush=True)
            assert out.trouble == "No space left on device"
    expected = "andes-opt x: standard output can't be written: No space left on device.\n"
    assert capsys.readouterr().err == expected


def test_a_listener_that_has_gone_is_no_trouble(capsys):
    """``| head`` has read enough."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with careful_output("x") as out:
            print("lost", flush=True)
            assert out.trouble is None
    assert capsys.readouterr().err == ""


def test_a_stream_that_is_closed_is_silent():
    """Its own ValueError is no reason to fail either."""
    closed = io.StringIO()
    closed.close()
    stream = CarefulStream(closed)
    stream.write("lost")
    stream.flush()
    assert "closed" in stream.trouble


def test_closed_descriptors_point_nowhere():
    """After ``>&- 2>&-`` no file that is opened becomes standard output."""
    code = (
        "import os, sys; from experiments.configuration.output import careful_output\n"
        "with careful_output('x'):\n"
        "    print('lost'); print('lost', file=sys.stderr); assert not sys.stderr.isatty()\n"
        "    assert os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY) > 2\n"
        "    os.write(1, b'lost'); os.write(2, b'lost')\n"
        "os._exit(7)\n"
    )
    command = f'exec {sys.executable} -c "$0" opened <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, code], check=False)
    assert done.returncode == 7
