"""Cached activations, and what a training step reads of them."""
