"""Tiny tokenizers of the kinds that encoders have: byte-level BPE (RoBERTa, ModernBERT) and Unigram (XLM-RoBERTa)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CamembertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, XLMRobertaTokenizer

from tests.parity.checkpoints import CORPUS, edit_json, write_json, write_tokenizer


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _pieces(special: list[str]) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _roberta(directory: Path) -> None:
    state = json.loads(_byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    RobertaTokenizer(vocab=state["vocab"], merges=merges).save_pretrained(directory)


def _xlm_roberta(directory: Path) -> None:
    vocab = [*_pieces(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocab).save_pretrained(directory)


def _camembert(directory: Path) -> None:
    vocab = _pieces(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"])
    CamembertTokenizer(vocab=[*vocab, ("<mask>", 0.0)]).save_pretrained(directory)


def _distilbert(directory: Path) -> None:
    write_tokenizer(directory, "bert", tokenizer_class="DistilBertTokenizer")


def _modernbert(directory: Path) -> None:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]"}  # fmt: skip
    tokenizer = _byte_level(list(special.values()))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


_KINDS: dict[str, Callable[[Path], None]] = {
    "bert": lambda directory: write_tokenizer(directory, "bert"),
    "mpnet": lambda directory: write_tokenizer(directory, "mpnet"),
    "distilbert": _distilbert,
    "roberta": _roberta,
    "xlm-roberta": _xlm_roberta,
    "camembert": _camembert,
    "modernbert": _modernbert,
}


def write_encoder_tokenizer(directory: Path, kind: str, **config: Any) -> None:
    """The tokenizer of a model type with its config.json; `config` goes over tokenizer_config.json (`...`: no key)."""
    _KINDS[kind](directory)
    write_json(directory / "config.json", {"model_type": kind})
    edit_json(directory / "tokenizer_config.json", **config)
