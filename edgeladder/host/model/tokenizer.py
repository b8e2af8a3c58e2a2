"""The backbone's tokenizer in a form that the `tokenizers` library reads on a device."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.manifest import TokenizerRecord
from edgeladder.host.model.backbone import Backbone
from edgeladder.runtime.towers.tokens import Tokenizer

_PROBES = [
    "a photo of a long-sleeved shirt.",
    "It's the dog's 3rd toy, isn't it?",
    "Café  naïve — 42 km/h @home",
    "x" * 40,
]


def write_tokenizer(backbone: Backbone, folder: Path) -> TokenizerRecord:
    """Write `folder/tokenizer/` and check it against the model's own tokenizer.

    Raises:
        EdgeLadderError: the files are not at hand offline, or their ids differ.
    """
    target = folder / "tokenizer"
    target.mkdir(parents=True)
    if backbone.write_tokenizer is not None:
        record: TokenizerRecord = backbone.write_tokenizer(target)
        return record
    own = backbone.tokenizer
    if own is None:
        raise EdgeLadderError(
            f"{backbone.name} came without a tokenizer",
            where="a backbone that was not loaded by name",
            remedy="give `wrap` the tokenizer of the model",
        )
    if hasattr(own, "bpe_ranks"):
        return _clip(backbone, own, target)
    return _huggingface(backbone, own, target)


def _clip(backbone: Backbone, own: Any, target: Path) -> TokenizerRecord:
    """OpenAI's byte-pair encoding as a tokenizer.json."""
    import tokenizers
    from tokenizers import Regex, models, pre_tokenizers

    library = tokenizers.Tokenizer(
        models.BPE(
            vocab=own.encoder,
            merges=list(own.bpe_ranks),
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            fuse_unk=False,
        )
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.save(str(target / "tokenizer.json"), pretty=False)
    for text in _PROBES:
        mine = library.encode(own.clean_fn(text), add_special_tokens=False).ids
        if mine != own.encode(text):
            raise EdgeLadderError(f"the written tokenizer disagrees on {text!r}")
    return TokenizerRecord(
        kind="clip-bpe",
        files=["tokenizer/tokenizer.json"],
        context_length=backbone.context_length,
        options={"clean": "lower", "start": own.sot_token_id, "end": own.eot_token_id, "pad": 0},
    )


def _huggingface(backbone: Backbone, own: Any, target: Path) -> TokenizerRecord:
    """A fast Hugging Face tokenizer's own tokenizer.json."""
    inner = own.tokenizer
    inner.save_pretrained(str(target / "all"))
    source = target / "all" / "tokenizer.json"
    if not source.is_file():
        raise EdgeLadderError(
            f"the tokenizer of {backbone.name} has no fast form",
            remedy="take a model whose tokenizer has a tokenizer.json",
        )
    shutil.move(source, target / "tokenizer.json")
    shutil.rmtree(target / "all")
    clean = getattr(own, "clean_fn", None)
    name = getattr(clean, "__name__", "")
    kind = (
        "canonicalize" if "canonicalize" in name else "lower" if "lower" in name else "whitespace"
    )
    options = {"clean": kind, "special": True, "pad": int(inner.pad_token_id or 0)}
    if getattr(own, "strip_sep_token", False):
        options["blank"] = int(inner.sep_token_id)
    record = TokenizerRecord(
        kind="huggingface",
        files=["tokenizer/tokenizer.json"],
        context_length=backbone.context_length,
        options=options,
    )
    there = Tokenizer.from_record(record, target.parent).encode(_PROBES)
    for text, mine, theirs in zip(_PROBES, there, own(_PROBES).numpy(), strict=True):
        if not np.array_equal(mine, theirs):
            raise EdgeLadderError(
                f"the written tokenizer disagrees on {text!r}",
                where=backbone.name,
                remedy="take a model whose tokenizer adds no tokens of its own kind",
            )
    return record
