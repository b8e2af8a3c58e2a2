"""The stock engine, under which the disk fails: after a step the shards hold other bits."""

import os
from pathlib import Path

from edgeladder.runtime.engine.stock import StockEngine

STEP = 6


class DamagingEngine(StockEngine):
    """Flips bits of every sample's taps, of both sides, before step `STEP` reads anything."""

    steps = 0

    def step(self, inputs, learning_rate):
        self.steps += 1
        marker = Path(os.environ["EDGELADDER_DAMAGE"])
        if self.steps == STEP and not marker.exists():
            marker.touch()
            for path in sorted(marker.parent.glob("cache/*/0*.safetensors")):
                content = bytearray(path.read_bytes())
                for place in range(len(content) // 2, len(content) - 1000, 256):
                    content[place] ^= 64
                with open(path, "r+b") as stream:  # in place, as a failing block would
                    stream.write(content)
        return super().step(inputs, learning_rate)


def open_damaging(bundle, step_plan, train, loss):
    """As `engine: damaging_engine:open_damaging` names it."""
    return DamagingEngine(bundle, step_plan, train, loss)
