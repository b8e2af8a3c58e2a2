"""Tests mirror the package; what needs torch is under tests/host."""
