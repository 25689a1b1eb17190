"""Benchmarks: measured, printed, never part of a pass/fail test."""
