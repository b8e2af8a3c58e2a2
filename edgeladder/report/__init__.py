"""A run or a fleet as one self-contained HTML page."""
