"""Many boxes over SSH."""
