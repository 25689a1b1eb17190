"""Machine code is kept as long as it is right, and nothing fails where it cannot be kept."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from andes_opt import compilation
from experiments.runs import code_closure

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = re.compile(
    r"andes-opt: compiled code cannot be kept \((.*)\); set NUMBA_CACHE_DIR to a writable folder "
    r"to compile only once\.\n"
)

FILES = {
    "andes_opt/settings.py": "STEP = 1\n",
    "andes_opt/helper.py": """
from andes_opt import settings
from andes_opt.compilation import jit
STEP = settings.STEP
@jit
def helper(x):
    return x + STEP
""",
    "andes_opt/caller.py": """
from andes_opt.compilation import jit
from andes_opt.helper import (
    helper,
)
@jit(error_model="numpy")
def caller(x):
    return 10 * helper(x)
""",
    "andes_opt/unrelated.py": "A = 1\n",
    "mine.py": """
from andes_opt.compilation import jit
from andes_opt.caller import caller
@jit
def mine(x):
    return caller(x) + 0.5
""",
}

REPORT = """
import json
import andes_opt.unrelated
from andes_opt.caller import caller
from mine import mine
hits = lambda function: sum(function.stats.cache_hits.values())
print(json.dumps([caller(1), mine(1), hits(caller), hits(mine)]))
"""


def write_project(folder):
    """A small project with our module of compilation, and a user's module beside it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "andes_opt" / "__init__.py").write_text("")
    shutil.copy(compilation.__file__, folder / "andes_opt")
    return folder


@pytest.fixture
def project(tmp_path):
    """A project of which nothing has been compiled."""
    return write_project(tmp_path / "project")


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A project whose functions one process has compiled."""
    project = write_project(tmp_path_factory.mktemp("compiled") / "project")
    assert run(project) == ([20, 20.5, 0, 0], "")
    return project


@pytest.fixture
def warm(compiled_once, tmp_path):
    """A copy of that project, its kept code included."""
    return shutil.copytree(compiled_once, tmp_path / "project")


def start(project, script=REPORT, **variables):
    """A new process that runs a script in the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    ours = {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=project,
        env={**kept, **ours, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What a process printed last, as data, and its standard error."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def run(project, script=REPORT, **variables):
    return finish(start(project, script, **variables))


def change(project, name, before, after):
    path = project / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def unwritable(project):
    """Variables under which Numba finds no folder, for root too: files stand in the way."""
    (project / "andes_opt" / "__pycache__").write_text("")
    (project / "__pycache__").write_text("")
    file = project.parent / "file"
    file.write_text("")
    return {"NUMBA_CACHE_DIR": f"{file}/cache", "HOME": f"{file}", "XDG_CACHE_HOME": f"{file}/x"}


def test_second_process_loads_what_the_first_compiled(warm):
    """Kept code is used again, in a copy of the project too, whose files have other dates."""
    for path in warm.rglob("*.py"):
        os.utime(path, (1, 1))
    assert run(warm) == ([20, 20.5, 1, 1], "")


def test_numbas_folder_is_kept_to(project, tmp_path):
    """Code is kept in NUMBA_CACHE_DIR where that is set, and nowhere else."""
    folder = str(tmp_path / "cache")
    assert run(project, NUMBA_CACHE_DIR=folder) == ([20, 20.5, 0, 0], "")
    assert run(project, NUMBA_CACHE_DIR=folder) == ([20, 20.5, 1, 1], "")
    assert not list(project.rglob("*.nbi"))


@pytest.mark.parametrize(
    ("name", "before", "after", "expected"),
    [
        ("andes_opt/helper.py", "x + STEP", "x - STEP", [0, 0.5, 0, 0]),
        ("andes_opt/settings.py", "1", "2", [30, 30.5, 0, 0]),
        ("andes_opt/unrelated.py", "1", "2", [20, 20.5, 1, 1]),
        ("mine.py", "0.5", "1.5", [20, 21.5, 1, 0]),
    ],
)
def test_change_in_another_file_is_noticed(warm, name, before, after, expected):
    """Callers of a changed function, and users of a changed constant, are compiled again."""
    change(warm, name, before, after)
    assert run(warm)[0] == expected


def test_old_versions_are_removed(warm):
    """The newest versions of a module's code stay, and files of others are left alone."""
    (first,) = warm.rglob("caller.caller-*.nbi")
    stem = first.name.partition(".andes-")[0]
    old = [first.with_name(f"{stem}.andes-{i:016x}.nbi") for i in range(6)]
    others = [first.with_name(name) for name in ("caller.f-1.py311.nbi", "callers.f.andes-0.nbi")]
    for i, path in enumerate([*old, *others]):
        path.write_text("")
        os.utime(path, (i, i))
    change(warm, "andes_opt/settings.py", "1", "2")
    run(warm)
    left = list(first.parent.glob(f"{stem}.andes-*.nbi"))
    assert len(left) == compilation.KEPT_VERSIONS
    assert {first, *old[4:]} < set(left)
    assert all(path.exists() for path in others)


def test_without_a_writable_folder_all_runs_and_says_so_once(project):
    """No folder to write to: the same results, and one sentence on standard error."""
    numbers, errors = run(project, **unwritable(project))
    assert numbers == [20, 20.5, 0, 0]
    match = SENTENCE.fullmatch(errors)
    assert match, errors
    assert match[1] == "no writable cache folder"


def test_nothing_is_said_before_something_is_compiled(project):
    """A process that only imports compiled functions has no reason to speak."""
    assert run(project, "import mine\nprint(1)", **unwritable(project)) == (1, "")


def test_full_disk_is_no_error(project):
    """The disk takes no byte: the same results, and one sentence with the system's reason."""
    pytest.importorskip("resource")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    numbers, errors = run(project, limit + REPORT)
    assert numbers == [20, 20.5, 0, 0]
    match = SENTENCE.fullmatch(errors)
    assert match, errors
    assert "File too large" in match[1]


def test_damaged_files_are_written_anew(warm):
    """A file that a crash cut short is compiled once more, not an error."""
    for pattern in ("mine.*.nbi", "caller.*.nbc"):
        (path,) = warm.rglob(pattern)
        path.write_bytes(path.read_bytes()[:-20])
    assert run(warm) == ([20, 20.5, 0, 0], "")
    assert run(warm) == ([20, 20.5, 1, 1], "")


def test_processes_that_compile_at_once_do_not_mix_their_code(project):
    """Several processes begin with an empty cache, each with other types: all stay right."""
    script = "import json\nfrom andes_opt.caller import caller\nprint(json.dumps(caller({})))"
    values = ["1", "1.5", "True", "1"]
    expected = [20, 25.0, 20, 20]
    started = [start(project, script.format(value)) for value in values]
    assert [finish(process)[0] for process in started] == expected
    assert [run(project, script.format(value))[0] for value in values] == expected


NO_FUNCTION_CACHE = """
known = caching.FunctionCache
del caching.FunctionCache
import mine
caching.FunctionCache = known
"""


@pytest.mark.parametrize(
    "change_in_numba",
    [
        NO_FUNCTION_CACHE,
        """
class Other:
    def __init__(self, function):
        self.kept = Known(function)
    def __getattr__(self, name):
        if name in ("_impl", "_cache_file"):
            raise AttributeError(name)
        return getattr(self.kept, name)
Known, caching.FunctionCache = caching.FunctionCache, Other
""",
        """
class Other(caching.CompileResultCacheImpl):
    def __getattribute__(self, name):
        if name == "filename_base" and sys._getframe(1).f_code.co_filename != caching.__file__:
            raise AttributeError(name)
        return super().__getattribute__(name)
caching.FunctionCache._impl_class = Other
""",
    ],
)
def test_other_names_in_numba_leave_its_own_cache(project, change_in_numba):
    """A Numba without the names that we use keeps code by its own rules, without a word."""
    script = f"import sys\nfrom numba.core import caching\n{change_in_numba}\n{REPORT}"
    assert run(project, script) == ([20, 20.5, 0, 0], "")
    assert run(project, script) == ([20, 20.5, 1, 1], "")
    assert not list(project.rglob("*.andes-*"))


def test_other_names_in_numba_and_no_folder(project):
    """The same without a folder to write to: all runs, and one sentence says so."""
    script = f"from numba.core import caching\n{NO_FUNCTION_CACHE}\n{REPORT}"
    numbers, errors = run(project, script, **unwritable(project))
    assert numbers == [20, 20.5, 0, 0]
    assert SENTENCE.fullmatch(errors), errors


def test_interpreted_where_numba_is_switched_off(project):
    """NUMBA_DISABLE_JIT leaves plain functions."""
    script = "import json\nfrom mine import mine\nprint(json.dumps([type(mine).__name__, mine(1)]))"
    assert run(project, script, NUMBA_DISABLE_JIT="1")[0] == ["function", 20.5]


def compiled_modules():
    """Dotted names and files of all modules with compiled functions."""
    for package in ("andes_opt", "solvers", "engine_adapter"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if re.search(r"^ *@(jit|inner)", path.read_text(encoding="utf-8"), re.MULTILINE):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def test_imports_are_all_seen():
    """The quick look at import lines finds what reading the modules' syntax finds."""
    modules = dict(compiled_modules())
    assert len(modules) > 20
    for name, path in modules.items():
        exact = {
            file
            for module in code_closure.closure([name])
            for stem in (ROOT.joinpath(*module.split(".")),)
            for file in (stem.with_suffix(".py"), stem / "__init__.py")
            if file.is_file()
        }
        assert exact <= set(compilation._closure(path)), name  # noqa: SLF001


def test_one_decorator_for_all_compiled_functions():
    """No module of these packages compiles by Numba's own decorators."""
    for package in ("andes_opt", "solvers", "engine_adapter"):
        for path in (ROOT / package).rglob("*.py"):
            if path != Path(compilation.__file__):
                names = {
                    alias.name
                    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(node, ast.ImportFrom) and node.module == "numba"
                    for alias in node.names
                }
                assert not names & {"njit", "jit", "vectorize", "guvectorize", "cfunc"}, path
