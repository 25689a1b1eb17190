"""
How functions are compiled, and when machine code that was kept on disk is used again.

A function's machine code holds the code of the functions that it calls, and these may lie in
other files; Numba by itself looks at the function's own file alone. Here code is kept by its
version: a hash of the text of the function's module and of every module of the project that
this module imports, directly or not. A change in any of them compiles the function again; a
change elsewhere does not.

The version is part of a kept file's name. Of each module the newest versions stay and older
ones are removed. Where no file can be written everything runs as well, and each process says
once that it compiles anew.

Numba's private names are used in `jit` and `_KeptCode` alone. Where a version of Numba
lacks one of them, its own cache is used as it is.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import uuid
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core import caching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How many versions of a module's machine code stay, so that branches can be changed to and fro.
KEPT_VERSIONS = 4

_ROOT = Path(__file__).resolve().parents[1]
_MARK = ".andes-"
_said: list[Exception] = []

#: "from solvers.prices import a, b" or "import solvers.prices" at the start of a line. Imports
#: that are indented (for type checking, or in functions) bring nothing into compiled code.
_IMPORT = re.compile(
    r"^(?:from|import) +((?:andes_opt|solvers|engine_adapter)\b[\w.]*)"
    r"(?: +import +(\([^)]*\)|.*))?",
    re.MULTILINE,
)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """
    Compiles a function by Numba's ``njit``, and keeps the machine code where that is possible.

    A function outside this project that calls its compiled functions should use this decorator
    too: ``njit(cache=True)`` does not notice that a function in another file has changed.

    Parameters
    ----------
    function
        The function; without it a decorator is returned.
    options
        Options of ``numba.njit``.
    """
    if function is None:
        return partial(jit, **options)
    dispatcher = numba.njit(**options)(function)
    if hasattr(dispatcher, "_cache") and hasattr(caching, "FunctionCache"):
        dispatcher._cache = _KeptCode(function)  # noqa: SLF001
    elif hasattr(dispatcher, "enable_caching"):  # not so where NUMBA_DISABLE_JIT is set
        try:
            dispatcher.enable_caching()
        except RuntimeError as error:
            _say_once(error)
    return dispatcher


#: As :func:`jit`, for functions that only compiled code calls. Numba links all callees into
#: their callers and optimises them there again, so what nobody uses (an entry from Python and one
#: from C each) costs seconds.
inner = jit(no_cpython_wrapper=True, no_cfunc_wrapper=True)


class _KeptCode:
    """One function's machine code on disk, in the form that Numba's dispatchers ask for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _cache(self) -> Any:
        """Numba's cache with our version in it, opened at the first use; None without a folder."""
        try:
            kept = caching.FunctionCache(self._function)
        except RuntimeError as error:
            _say_once(error)
            return None
        if hasattr(kept, "_cache_file"):
            with suppress(AttributeError, TypeError):  # a Numba that has other names
                kept._cache_file = self._files(kept)  # noqa: SLF001
        return kept

    def _files(self, kept: Any) -> Any:
        """Numba's index and data files, with the version in their names."""
        version = _version(self._function)
        name = f"{kept._impl.filename_base}{_MARK}{version}"  # noqa: SLF001
        files = caching.IndexDataCacheFile(
            cache_path=kept.cache_path, filename_base=name, source_stamp=version
        )
        # Numba numbers data files. Two processes that compile for different types at the same
        # time would write the same one, and the index would give code for the wrong types.
        files._data_name_pattern = f"{name}.{uuid.uuid4().hex[:8]}.{{number:d}}.nbc"  # noqa: SLF001
        return files

    @property
    def cache_path(self) -> str | None:
        """The folder; None where there is none."""
        return self._cache.cache_path if self._cache else None

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Returns what was compiled before for these types, or None."""
        if self._cache:
            try:
                return self._cache.load_overload(signature, context)
            except OSError as error:
                _say_once(error)
            except Exception:  # a damaged file may raise anything
                self.flush()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keeps what was compiled, if it can be written."""
        if self._cache:
            try:
                self._cache.save_overload(signature, result)
            except OSError as error:
                _say_once(error)
            else:
                _remove_old(
                    Path(self._cache.cache_path), Path(inspect.getfile(self._function)).stem
                )

    def flush(self) -> None:
        """Forgets what was compiled before."""
        if self._cache:
            with suppress(OSError):
                self._cache.flush()


def _say_once(error: Exception) -> None:
    """Says why compiled code cannot be kept, the first time in a process."""
    if not _said:
        _said.append(error)
        reason = error if isinstance(error, OSError) else "no writable cache folder"
        print(
            f"andes-opt: compiled code cannot be kept ({reason}); set NUMBA_CACHE_DIR to a "
            "writable folder to compile only once.",
            file=sys.stderr,
        )


def _version(function: Callable[..., Any]) -> str:
    """A hash of Numba's version and of all texts that a function's machine code depends on."""
    path = Path(inspect.getfile(function)).resolve()
    if path.is_file():
        texts = [_digest_and_imports(module)[0] for module in _closure(path)]
    else:  # in a notebook or an archive
        texts = [inspect.getsource(function).encode()]
    return hashlib.sha256(b"\0".join([numba.__version__.encode(), *texts])).hexdigest()[:16]


@cache
def _closure(path: Path) -> tuple[Path, ...]:
    """A module's file and those of the project that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _digest_and_imports(module)[1]
    return tuple(sorted(found))


@cache
def _digest_and_imports(path: Path) -> tuple[bytes, tuple[Path, ...]]:
    """A hash of a file's text, and the project's files that it imports itself."""
    text = path.read_bytes()
    return hashlib.sha256(text).digest(), tuple(_imports(text.decode(errors="replace")))


def _imports(text: str) -> Iterator[Path]:
    """The project's files that a module's text imports: modules, and names that are modules."""
    for module, names in _IMPORT.findall(text):
        for name in ("", *re.findall(r"\w+", names)):
            path = _ROOT.joinpath(*module.split("."), name)
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    yield file


@cache
def _remove_old(folder: Path, module: str) -> None:
    """Removes all but the newest versions of a module's kept code, once in a process."""
    with suppress(OSError):  # another process may remove them at the same time
        files = [
            (file.stat().st_mtime, file.name.split(_MARK)[1].split(".")[0], file)
            for file in folder.iterdir()
            if file.name.startswith(f"{module}.") and _MARK in file.name
        ]
        newest_first = dict.fromkeys(version for _, version, _ in sorted(files, reverse=True))
        for _, version, file in files:
            if version not in list(newest_first)[:KEPT_VERSIONS]:
                file.unlink(missing_ok=True)
