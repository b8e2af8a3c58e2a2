"""Closed-form heads on cached features."""
