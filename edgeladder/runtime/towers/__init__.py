"""Frozen towers over pictures and class names."""
