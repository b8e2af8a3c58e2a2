"""The training loop, its checkpoints, its run directory and its supervisor."""
