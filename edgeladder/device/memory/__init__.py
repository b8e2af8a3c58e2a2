"""Measure, predict and enforce the memory budget."""
