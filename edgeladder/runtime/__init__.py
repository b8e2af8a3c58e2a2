"""Pure computation on a device: towers, cache, engines, heads, logits; no processes, no policy."""
