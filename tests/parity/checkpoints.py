"""Tiny random checkpoints in temporary directories, written by the libraries that jaxpool is compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, PreTrainedModel

CORPUS = (
    "the quick brown fox jumps over the lazy dog while seven wizards box with jugs of liquid",
    "A stitch in time saves nine; Don't count Your chickens before they Hatch!",
    "naïve café über Straße señor façade ångström crème brûlée",
    "query: passage: represent this sentence for searching relevant passages",
    "日本語 漢字 東京 中文 한국어 русский текст نص عربي שלום",
)

# Of every length from no token at all to far beyond any limit here; with a duplicate, and much that is not ASCII.
TEXTS = (
    "",
    "fox",
    "The quick brown fox",
    "the lazy dog, the lazy dog; the lazy dog!",
    "The quick brown fox",
    "  blanks   in front, between and behind \t\r\n ",
    "naïve CAFÉ ÜBER Straße e\u0301 i\u0307",
    "東京の日本語 and 中文",
    "نص عربي שלום русский ТЕКСТ 한국어",
    "🙂🙃 emoji 👩\u200d👩\u200d👧 and \ufffd \u200b zero width",
    "control \x00 \x01 \x1f characters \x7f",
    "[SEP] [CLS] [PAD] [MASK] </s> <s> <pad> <mask> spelt out",
    "wizards " * 7,
    "seven wizards box with jugs " * 4,
    "a stitch in time saves nine " * 30,
    "x" * 99 + " " + "y" * 101 + " fox",
    "quickbrownfoxjumpsoverthelazydog" * 9,
    "....!!!!????,,,,",
    "time\nsaves\nnine",
    "fox " * 500,
)

# In the order in which sentence-transformers' older files concatenate several.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}

HIDDEN = 36
# Sizes that share no factor with a vector unit's.
SIZES = {
    "hidden_size": HIDDEN,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "max_position_embeddings": 48,
}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def edit_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON object; a value of `...` takes the key out."""
    merged = (read_json(path) if path.exists() else {}) | values
    write_json(path, {key: value for key, value in merged.items() if value is not ...})


def _word_pieces(special: list[str], lowercase: bool) -> Tokenizer:
    """A WordPiece vocabulary of the corpus: its words, halves of them, and its characters."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = {word for line in CORPUS for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(line))}
    characters = {character for word in words for character in word}
    pieces = {piece for word in words for piece in (word[: len(word) // 2], f"##{word[len(word) // 2 :]}")}
    vocabulary = [*special, *sorted(words | characters | pieces | {f"##{character}" for character in characters})]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(filter(None, vocabulary)))}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _surround(tokenizer: Tokenizer, first: str, last: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )


def bert_tokenizer(lowercase: bool = True) -> Tokenizer:
    """[PAD] = 0, and "[CLS] text [SEP]"."""
    tokenizer = _word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], lowercase)
    _surround(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def mpnet_tokenizer(lowercase: bool = True) -> Tokenizer:
    """<s> = 0, <pad> = 1, </s> = 2 as in the published MPNets, and "<s> text </s>"."""
    tokenizer = _word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], lowercase)
    _surround(tokenizer, "<s>", "</s>")
    return tokenizer


_TOKENIZER_CONFIGS = {
    "bert": {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
             "cls_token": "[CLS]", "mask_token": "[MASK]"},
    "mpnet": {"tokenizer_class": "MPNetTokenizer", "unk_token": "[UNK]", "bos_token": "<s>", "eos_token": "</s>",
              "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"},
}  # fmt: skip


def write_tokenizer(directory: Path, kind: str, *, lowercase: bool = True, **config: Any) -> Tokenizer:
    """tokenizer.json and tokenizer_config.json; `config` goes over the latter (`...` takes a key out)."""
    tokenizer = {"bert": bert_tokenizer, "mpnet": mpnet_tokenizer}[kind](lowercase)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    write_json(directory / "tokenizer_config.json", _TOKENIZER_CONFIGS[kind] | settings)
    edit_json(directory / "tokenizer_config.json", **config)
    return tokenizer


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values where a fresh model has ones and zeros (norms, biases, padding rows), so that all of them tell."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.25, generator=generator)
            if name.endswith(("LayerNorm.weight", "norm.weight")):
                parameter += 1


def make_model(
    kind: str, cls: type[PreTrainedModel] | None = None, *, vocab_size: int = 90, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """A random BERT or MPNet of the sizes above; `cls` for one with heads."""
    base, config_class = {"bert": (BertModel, BertConfig), "mpnet": (MPNetModel, MPNetConfig)}[kind]
    model = (cls or base)(config_class(**SIZES | {"vocab_size": vocab_size} | config))
    randomise(model, seed)
    return model.eval()


def write_backbone(directory: Path, kind: str, *, lowercase: bool = True, **tokenizer_config: Any) -> Path:
    """A whole model directory as transformers writes it, without sentence-transformers' files."""
    tokenizer = write_tokenizer(directory, kind, lowercase=lowercase, **tokenizer_config)
    make_model(kind, vocab_size=tokenizer.get_vocab_size()).save_pretrained(directory)
    return directory


def write_bin(
    directory: Path,
    config: Any,
    state: dict[str, torch.Tensor],
    *,
    legacy: bool = False,
    shards: int = 1,
) -> None:
    """config.json and pytorch_model.bin: one file or several with an index; in torch ≥ 1.6's format or the one before."""
    config.save_pretrained(directory)
    zipped = {"_use_new_zipfile_serialization": not legacy}
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin", **zipped)
        return
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    home = {key: names[i * shards // len(state)] for i, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if home[key] == name}, directory / name, **zipped)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_json(directory / "pytorch_model.bin.index.json", {"metadata": {"total_size": size}, "weight_map": home})


def write_sentence_transformer(
    directory: Path, backbone: Path, modules: Iterable[torch.nn.Module], *, transformer: Any = None, **settings: Any
) -> Path:
    """A model directory as today's sentence-transformers saves it."""
    modules = list(modules)
    for i, module in enumerate(modules):
        randomise(module, seed=i + 1)
    chain = [Transformer(str(backbone), **(transformer or {})), *modules]
    SentenceTransformer(modules=chain, device="cpu", **settings).save(str(directory), create_model_card=False)
    return directory


def to_old_format(source: Path, target: Path, *, max_seq_length: int | None = 16, do_lower_case: bool = False) -> Path:
    """Rewrites a directory to what sentence-transformers ≤ 5.3 saved, which nearly all published models still are."""
    shutil.copytree(source, target)
    modules = read_json(target / "modules.json")
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        folder = target / module["path"]
        _OLD_FILES.get(kind, lambda folder: None)(folder)
    write_json(target / "modules.json", modules)
    write_json(target / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": do_lower_case})
    edit_json(target / "tokenizer_config.json", model_max_length=512)
    edit_json(target / "config_sentence_transformers.json", model_type=...)
    return target


def _old_pooling(folder: Path) -> None:
    new = read_json(folder / "config.json")
    modes = [new["pooling_mode"]] if isinstance(new["pooling_mode"], str) else new["pooling_mode"]
    flags = {flag: mode in modes for mode, flag in POOLING_FLAGS.items()}
    old = {"word_embedding_dimension": new["embedding_dimension"], **flags, "include_prompt": new["include_prompt"]}
    write_json(folder / "config.json", old)


def _old_dense(folder: Path) -> None:
    edit_json(folder / "config.json", module_input_name=..., module_output_name=...)
    _old_weights(folder)


def _old_weights(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


_OLD_FILES: dict[str, Callable[[Path], None]] = {
    "Pooling": _old_pooling,
    "Dense": _old_dense,
    "LayerNorm": _old_weights,
    "Normalize": shutil.rmtree,
}


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Same shape, and no entry further apart than `tolerance`."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
