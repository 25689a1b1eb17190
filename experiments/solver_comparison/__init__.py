"""Solvers on the same instances: answers, tables, figures."""
