"""Tokenizers of Hugging Face's kinds, trained here on a few sentences: their files in a folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

SENTENCES = [
    *("a photo of a long-sleeved shirt.", "It's the dog's 3rd toy, isn't it?"),
    *("Café  naïve — 42 km/h @home", "a bad photo of the class, itap of a small one"),
]


def byte_pairs(folder: Path) -> int:
    """RoBERTa's kind of tokenizer, trained here by the tokenizers library; its size."""
    from tokenizers import ByteLevelBPETokenizer, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(SENTENCES * 20, 400, special_tokens=special, show_progress=False)
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    library.save(str(folder / "tokenizer.json"))
    words = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _described(folder, words | {"sep_token": "</s>"}, library.get_vocab_size())


def pieces(folder: Path) -> int:
    """SigLIP's kind: a unigram model by sentencepiece, which ends and pads texts with </s>."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    reader = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    scored = [(reader.id_to_piece(i), reader.get_score(i)) for i in range(reader.vocab_size())]
    library = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    library.add_special_tokens([AddedToken("</s>", special=True)])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    words = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _described(folder, words, library.get_vocab_size())


def _described(folder: Path, words: dict[str, str], size: int) -> int:
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | words))
    return size
