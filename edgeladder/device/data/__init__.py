"""Pictures and class names to cached activations, and batches from the cache."""
