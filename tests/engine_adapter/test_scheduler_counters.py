"""What the counters say is true whenever the engine is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from live_clock import StatedClock
from live_traffic import ROUND_ROBIN, Traffic, serve, summary

from engine_adapter.report import read_report

if TYPE_CHECKING:
    from pathlib import Path

    from live_stepping import Engine, Start

pytestmark = pytest.mark.live


def counting(start: Start, path: Path, asynchronous: bool, **settings: Any) -> Engine:
    """An engine on whose clock no second ever passes."""
    from engine_adapter.scheduler import AndesScheduler, AndesSyncScheduler

    base = AndesScheduler if asynchronous else AndesSyncScheduler
    return start(
        ROUND_ROBIN,
        asynchronous=asynchronous,
        scheduler_class=type("Virtual", (base,), {"andes_clock": StatedClock()}),
        adapter={"report_path": str(path), **settings},
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_burst_shorter_than_a_second(start: Start, asynchronous: bool, tmp_path: Path) -> None:
    """
    After the last request has left, the report has all that came, and nobody running.

    A regression test: counters froze up to a second before, and said nine unfinished requests
    until the next one came.
    """
    path = tmp_path / "report.json"
    engine = counting(start, path, asynchronous)
    report = read_report(str(path))
    assert report is not None and (report["requests"], report["unfinished"]) == (0, 0)
    for burst in (1, 2, 3):
        for i in range(9):
            engine.add(f"{burst}-{i}", [i] * 20, 12)
        engine.drain(300)
        report = read_report(str(path))
        assert report is not None
        assert (report["requests"], report["unfinished"]) == (9 * burst, 0)
        assert report["finished"] == 9 * burst
        assert report["plans"] == summary(engine)["plans"] > 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_everybody_hangs_up(start: Start, asynchronous: bool, tmp_path: Path) -> None:
    """The same where the last ones did not finish: their clients left, before or after a token."""
    path = tmp_path / "report.json"
    engine = counting(start, path, asynchronous)
    for steps in (0, 1, 2, 7):
        for i in range(5):
            engine.add(f"{steps}-{i}", [i] * 40, 50)
        for _ in range(steps):
            engine.step()
        engine.abort(None)
        engine.drain(20)
        report = read_report(str(path))
        assert report is not None and report["unfinished"] == 0
    assert report["requests"] >= 15  # those that left before the engine looked are none of ours


@pytest.mark.parametrize("asynchronous", [False, True])
def test_random_traffic(start: Start, asynchronous: bool, tmp_path: Path) -> None:
    """Whenever nobody is left, the file says so and agrees with the counters, times included."""
    path = tmp_path / "report.json"
    engine = counting(start, path, asynchronous)
    quiet = 0

    def check(engine: Engine) -> None:
        nonlocal quiet
        if not engine.scheduler.has_requests() and not engine.queue:
            quiet += 1
            report = read_report(str(path))
            assert report is not None and report["unfinished"] == 0
            assert report["finished"] == summary(engine)["finished"]

    engine.on_step = check
    serve(engine, Traffic(11, requests=80, rate=0.02))
    assert quiet > 5


def test_no_more_files_than_seconds_and_pauses(start: Start, tmp_path: Path) -> None:
    """While requests come the report is written once a second, and once when they are gone."""
    path = tmp_path / "report.json"
    engine = counting(start, path, asynchronous=False)
    controller = engine.scheduler.andes
    written: list[float] = []
    write = controller._files.write  # noqa: SLF001

    def spy(values: Any) -> None:
        written.append(controller._clock.now_s)  # noqa: SLF001
        write(values)

    def later(engine: Engine) -> None:
        engine.scheduler.andes._clock.now_s += 0.01  # noqa: SLF001

    controller._files.write = spy  # noqa: SLF001
    engine.on_step = later
    for i in range(3):
        engine.add(str(i), [i] * 20, 300)
    engine.drain(1000)
    *seconds, last = written
    assert seconds == pytest.approx(
        [i + 1.0 for i in range(len(seconds))], abs=0.025 * len(seconds)
    )
    assert len(seconds) >= 3 and last == pytest.approx(controller._clock.now_s, abs=0.025)  # noqa: SLF001


def test_data_parallel_engines_write_files_of_their_own(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second engine of an instance writes beside the first, iterations too."""
    from vllm.config import ParallelConfig

    made = ParallelConfig.__post_init__

    def second(self: Any) -> None:
        made(self)
        self.data_parallel_index = 1

    report, iterations = tmp_path / "report.json", tmp_path / "iterations.csv"
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(ParallelConfig, "__post_init__", second)
        engine = counting(start, report, asynchronous=False, iterations_path=str(iterations))
        engine.add("a", [1] * 20, 5)
        engine.drain(20)
    names = {"report.json", "report.1.json", "iterations.csv", "iterations.1.csv"}
    assert {file.name for file in tmp_path.iterdir()} == names
