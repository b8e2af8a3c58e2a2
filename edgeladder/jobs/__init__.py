"""Supervisor, workers, run directories, and one file a phase."""
