"""Values that Hydra's grammar would refuse, taken as they stand where nothing else can be meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.configuration.values import advice, parses, quoted, taken

GRAMMAR = OverridesParser.create()
ODD = st.text(st.sampled_from("ab1.=/~ü?&:\\'\"()[]{},$ \n|é*%"), max_size=12)


def value_of(override):
    """What Hydra makes of an override's value."""
    return GRAMMAR.parse_override(override).value()


@settings(max_examples=200, deadline=None)
@given(text=ODD | st.text(max_size=6))
def test_any_text_can_be_quoted(text):
    """What is quoted comes out as it went in."""
    if "${" not in text:
        assert value_of(f"key={quoted(text)}") == text


@pytest.mark.parametrize(
    "value",
    [
        "tr/rate=2.csv",
        "run (1).csv",
        "umläut.csv",
        "http://[::1]:8000/v1",
        "http://host/v1?api-version=1&x=2",
        "it's.csv",
        "a#b;c|d*e%20",
        "C:\\data\\trace.csv",
        "中文/trace.csv",
        "a\\",
    ],
)
def test_paths_and_addresses_need_no_quotes(value):
    """They are taken as they stand, whichever sign they have."""
    assert value_of(taken(f"workload.path={value}")) == value
    assert value_of(taken(f"+a.b={value}")) == value


def test_home_is_ones_own_folder():
    """At the beginning of a value, of one of several, and within quotes; nowhere else."""
    home = str(Path.home())
    assert value_of(taken("p=~/x/rate=2.csv")) == f"{home}/x/rate=2.csv"
    assert taken("p='~/x y'") == f"p='{home}/x y'"
    assert taken("p=[~/a,~/b]") == f"p=[{home}/a,{home}/b]"
    assert value_of(taken("p=a~/b")) == "a~/b"
    assert taken("~p") == "~p"


@pytest.mark.parametrize(
    "override",
    ["a=1", "a=b,c", "a=[b,c]", "a={b:1}", "a=range(1,3)", "a='x'", "a=${b}", "~a", "a=", "a=null"],
)
def test_what_the_grammar_takes_stays(override):
    """Numbers, lists, sweeps, functions, interpolations mean what they meant."""
    assert taken(override) == override


@pytest.mark.parametrize(
    "override", ["a=range(1,", "a=[b", "a={b", "a='b", "a=ü,b", "a=choice(1", "a=${b"]
)
def test_what_may_mean_more_is_not_guessed(override):
    """A list, a function or a sweep that is broken is refused, not taken for a text."""
    assert taken(override) == override
    assert not parses(override)


@settings(max_examples=150, deadline=None)
@given(text=ODD)
def test_advice_is_a_line_for_the_shell(text):
    """Where quoting helps, the line that is shown gives the shell an override that is taken."""
    line = taken(f"key={text}")
    if parses(line):
        return
    words = advice(f"key={text}")
    for before in ("write ", "as a text: "):
        if before in words:
            shown = words.partition(before)[2].split(", or for several")[0].removesuffix(".")
            (override,) = shlex.split(shown)
            assert parses(override)


def test_advice_names_both_readings():
    """A comma may part several values or belong to one."""
    words = advice("p=ü,b")
    assert words == """write 'p="ü,b"', or for several values 'p="ü","b"'."""
    assert advice("p=[ü,b]") == """write 'p=["ü","b"]'."""
    assert advice("p") == "need key=value, or 'key=[a,b]' for a list."
    assert advice("p=[") == """need key=value, or 'key=[a,b]' for a list; as a text: 'p="["'."""
