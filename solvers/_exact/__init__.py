"""The compiled parts of the exact solver; :mod:`solvers.exact` is its face."""
