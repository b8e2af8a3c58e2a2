"""EdgeLadder: adapt a frozen CLIP to a place, on the device, inside a memory budget."""

__version__ = "0.2.0"
