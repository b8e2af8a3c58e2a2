"""Class names -> prompts -> tokens, on the device.

The bundle brings a `tokenizer.json` for the `tokenizers` library (or a list of words for the nano
model), and the few rules around it: cleaning, start and end tokens, padding.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.runtime.pictures.class_names import ClassName, readable

if TYPE_CHECKING:
    from pathlib import Path

    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import TokenizerRecord

# of the seven that serve best on ImageNet (openai/CLIP, Prompt_Engineering_for_ImageNet), those
# that hold for things in a factory, a farm or a van too: no origami, no video games, no art
DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a photo of the small {}.",
)
LONGEST_PROMPT = 2000  # characters: a tower reads 77 tokens, and one endless word takes minutes
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def class_prompts(
    names: Sequence[ClassName | str], templates: Sequence[str] | None = None
) -> list[list[str]]:
    """For each class its name and aliases in every template.

    Raises:
        DataError: a template without exactly one {}, or a prompt longer than any that is read.
    """
    templates = DEFAULT_TEMPLATES if templates is None else templates
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(
                f"template {template!r} needs exactly one {{}}",
                where="prompt templates",
                remedy="write it like `a photo of a {}.`",
            )
    described = [readable(name) if isinstance(name, str) else name for name in names]
    longest = max(map(len, templates), default=0)
    for item in described:
        for text in item.all:
            if len(text) + longest > LONGEST_PROMPT:
                raise DataError(
                    f"a name of {len(text):,} characters: {text[:40]!r}...",
                    where="class names",
                    remedy=f"with its template at most {LONGEST_PROMPT:,}; a few words are best",
                )
    return [
        [template.replace("{}", text) for text in item.all for template in templates]
        for item in described
    ]


class Tokenizer:
    """Texts to token ids, as the backbone's own tokenizer does it."""

    def __init__(
        self, encode: Callable[[str], list[int]], context_length: int, options: dict[str, Any]
    ):
        self._encode = encode
        self.context_length = context_length
        self._clean = _CLEANERS[options.get("clean", "lower")]
        self._start: int | None = options.get("start")
        self._end: int | None = options.get("end")
        self._pad: int = options.get("pad", 0)
        self._blank: int | None = options.get("blank")  # CLIPA's: its separator reads as 0
        # a library that adds special tokens itself shows its end token on an empty text
        self._framed = self._end is not None or bool(options.get("special") and encode(""))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of a bundle.

        Raises:
            IntegrityError: its file cannot be read.
            ConfigError: of a kind this version does not know.
        """
        return cls.from_record(bundle.manifest.tokenizer, bundle.folder)

    @classmethod
    def from_record(cls, record: TokenizerRecord, folder: Path) -> Tokenizer:
        """The tokenizer of a bundle's folder, before there is a manifest; raises as above."""
        options: dict[str, Any] = dict(record.options)
        if record.kind not in ("clip-bpe", "huggingface", "nano"):
            raise ConfigError(
                f"unknown kind of tokenizer {record.kind!r}",
                where=str(folder),
                remedy="use the edgeladder version that made the bundle",
            )
        path = folder / record.files[0]
        try:
            import tokenizers

            library = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # the library raises bare Exceptions
            raise _broken(error, path) from error
        library.no_padding()
        library.no_truncation()
        special = bool(options.get("special", False))

        def encode(text: str) -> list[int]:
            try:
                ids: list[int] = library.encode(text, add_special_tokens=special).ids
            except BaseException as error:
                raise _broken(error, path) from error
            return ids

        return cls(encode, record.context_length, options)

    def encode(self, texts: list[str]) -> np.ndarray:
        """(n, context_length) int64; a text too long is cut, its end token kept."""
        out = np.full((len(texts), self.context_length), self._pad, np.int64)
        for row, text in zip(out, texts, strict=True):
            ids = self._encode(self._clean(text))
            if self._start is not None:
                ids = [self._start, *ids]
            if self._end is not None:
                ids = [*ids, self._end]
            if len(ids) > self.context_length:
                last = ids[-1]
                ids = ids[: self.context_length]
                if self._framed:
                    ids[-1] = last
            row[: len(ids)] = ids
        if self._blank is not None:
            out[out == self._blank] = 0
        return out


def _broken(error: BaseException, path: Path) -> BaseException:
    """What to raise for what the library raised: a panic of its Rust is no Exception in Python."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error  # Ctrl-C
    return IntegrityError(
        f"cannot load the tokenizer, or what it loaded is broken: {error}",
        where=str(path),
        remedy="copy or export the bundle again",
    )


def _whitespace(text: str) -> str:
    return " ".join(html.unescape(html.unescape(text)).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    # big_vision's prompt_engineering.py, which SigLIP was trained with
    plain = html.unescape(html.unescape(text)).strip().replace("_", " ")
    return " ".join(plain.translate(_NO_PUNCTUATION).lower().split())


_CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "canonicalize": _canonicalize,
    "whitespace": _whitespace,
}
