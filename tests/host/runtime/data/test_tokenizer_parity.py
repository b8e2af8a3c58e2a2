"""The device's tokenizer against open_clip's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

NAMES = [
    "long_sleeve",
    "Tee-shirt & jeans",
    "café crème",
    "it's 3 o'clock",
    "a&amp;b   c",
    "日本語 мяч",
    "x " * 40,
    " ",
]


def test_same_tokens(bundle_folder: Path) -> None:
    """Every prompt of awkward names: cleaned, encoded, framed, padded and cut alike."""
    bundle = Bundle.open(bundle_folder)
    texts = [text for texts in class_prompts(NAMES) for text in texts]
    theirs = SimpleTokenizer(context_length=bundle.manifest.tokenizer.context_length)
    assert np.array_equal(Tokenizer.from_bundle(bundle).encode(texts), theirs(texts).numpy())
