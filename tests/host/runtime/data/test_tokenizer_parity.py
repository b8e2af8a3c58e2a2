"""The device's tokenizer against open_clip's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.model.tokenizer import write_tokenizer
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts
from tests.host.model.small_tokenizers import byte_pairs

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


def described(own: Any) -> Any:
    return SimpleNamespace(name="x", tokenizer=own, write_tokenizer=None, context_length=12)


@pytest.mark.parametrize("strips", [False, True])
def test_a_tokenizer_of_transformers(tmp_path: Path, strips: bool) -> None:
    """CLIPA's reads its separator as 0."""
    pytest.importorskip("transformers")
    byte_pairs(tmp_path)
    own = HFTokenizer(str(tmp_path), 12, clean="canonicalize", strip_sep_token=strips)
    record = write_tokenizer(described(own), tmp_path / "bundle")
    mine = Tokenizer.from_record(record, tmp_path / "bundle").encode(NAMES)
    assert np.array_equal(mine, own(NAMES).numpy())
    assert (2 in mine) == (not strips)


def test_a_tokenizer_that_cannot_be_written_as_it_is(tmp_path: Path) -> None:
    """One that puts its class token behind the padding, as CLIPS does."""
    pytest.importorskip("transformers")
    byte_pairs(tmp_path)
    own = HFTokenizer(str(tmp_path), 12, tokenizer_mode="clips")
    own.tokenizer.cls_token = "<mask>"
    with pytest.raises(EdgeLadderError, match="the written tokenizer disagrees on"):
        write_tokenizer(described(own), tmp_path / "bundle")
