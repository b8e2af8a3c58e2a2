"""Labelled pictures: where they lie, how they are decoded, what their classes are called."""
