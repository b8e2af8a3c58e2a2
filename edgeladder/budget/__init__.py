"""Everything that is decided about memory, and nothing else."""
