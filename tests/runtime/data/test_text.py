"""Prompts and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tower import CONTEXT, TinyBundle

from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.runtime.pictures.class_names import ClassName
from edgeladder.runtime.towers.tokens import DEFAULT_TEMPLATES, Tokenizer, class_prompts


def test_class_prompts() -> None:
    """Every name and alias in every template, in a fixed order."""
    prompts = class_prompts([ClassName("hat", ("cap",)), "long_shirt"], ["a {}.", "the {}"])
    assert prompts == [
        ["a hat.", "the hat", "a cap.", "the cap"],
        ["a long shirt.", "the long shirt"],
    ]
    assert [len(texts) for texts in class_prompts(["hat"])] == [len(DEFAULT_TEMPLATES)]
    with pytest.raises(DataError, match="exactly one {}"):
        class_prompts(["hat"], ["a photo"])


def test_cleaning_padding_and_cutting() -> None:
    """As open_clip does: cleaned, framed, padded; cut with the end token kept."""

    def letters(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    tokenizer = Tokenizer(letters, 6, {"clean": "lower", "start": 1, "end": 2, "pad": 9})
    assert tokenizer.encode(["A&amp;b ", "abcdefgh"]).tolist() == [
        [1, 97, 38, 98, 2, 9],
        [1, 97, 98, 99, 100, 2],
    ]
    tokenizer = Tokenizer(letters, 4, {"clean": "canonicalize"})
    assert tokenizer.encode(["A,_b!"]).tolist() == [[97, 32, 98, 0]]
    assert tokenizer.encode([]).shape == (0, 4)
    ended = Tokenizer(lambda text: [*letters(text), 7], 4, {"special": True, "pad": 7})
    assert ended.encode(["ab", "abcdef"]).tolist() == [[97, 98, 7, 7], [97, 98, 99, 7]]


def test_from_bundle(tmp_path: Path) -> None:
    """The bundle's own file; a damaged or unknown one is named."""
    bundle = TinyBundle(tmp_path)
    tokens = Tokenizer.from_bundle(bundle).encode(["a photo of the Hat", "x " * 20])
    assert tokens.shape == (2, CONTEXT) and tokens[0].tolist() == [2, 3, 4, 5, 7, 0, 0, 0]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="cannot load the tokenizer"):
        Tokenizer.from_bundle(bundle)
    bundle.manifest.tokenizer.kind = "morse"
    with pytest.raises(ConfigError, match="unknown kind of tokenizer 'morse'"):
        Tokenizer.from_bundle(bundle)


def test_a_name_without_end_is_refused_before_it_is_read():
    """Its pairs were merged for more than a minute."""
    with pytest.raises(DataError, match="100,000 characters"):
        class_prompts(["a" * 100_000])
    with pytest.raises(DataError, match="characters"):
        class_prompts(["hat"], ["{}" + "a" * 5000])
