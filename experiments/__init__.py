"""Commands, runs, studies and documents: what is done with solvers, policies and engines."""

from pathlib import Path

#: The folder that holds this package, ``conf/`` and, in a checkout, everything else.
ROOT = Path(__file__).resolve().parents[1]
