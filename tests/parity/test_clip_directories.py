"""sentence-transformers' directories of models that embed texts and pictures, against the library itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import CLIPModel, LayerNorm, Pooling
from tokenizers import pre_tokenizers
from torch import nn

from jaxpool import LLM
from jaxpool.recipe import read_recipe
from tests.parity import test_clip, test_siglip
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, randomise, read_json, write_json
from tests.parity.checkpoints import write_backbone as write_bert
from tests.parity.pictures import pictures

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

WIDTH = 24
FILE = "sentence_bert_config.json"
PADDED = {"text": {"padding": "max_length", "max_length": test_siglip.LENGTH}}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """transformers' directories."""
    root = tmp_path_factory.mktemp("backbones")
    test_clip.build(root / "clip")
    test_siglip.build(root / "siglip")
    test_siglip.build(root / "siglip2", "siglip2")
    return {name: root / name for name in ("clip", "siglip", "siglip2")}


def _today(directory: Path, backbone: Path, *modules: nn.Module, **transformer: Any) -> Path:
    for i, module in enumerate(modules):
        randomise(module, seed=i + 1)
    chain = [Transformer(str(backbone), **transformer), *modules]
    SentenceTransformer(modules=chain, device="cpu").save(str(directory), create_model_card=False)
    return directory


def _today_by_its_old_name(directory: Path, backbone: Path, *modules: nn.Module) -> Path:
    for i, module in enumerate(modules):
        randomise(module, seed=i + 1)
    chain = [CLIPModel(str(backbone)), *modules]
    SentenceTransformer(modules=chain, device="cpu").save(str(directory), create_model_card=False)
    assert read_json(directory / "modules.json")[0]["type"].endswith(".CLIPModel")
    return directory


def _first(directory: Path, backbone: Path, *modules: nn.Module, path: str = "0_CLIPModel") -> Path:
    """As sentence-transformers/clip-ViT-B-32: a CLIPModel in a folder of its own, with what CLIP's first releases wrote."""
    today = _today(directory.with_name(f"{directory.name}-today"), backbone, *modules)
    shutil.copytree(backbone, directory / path, dirs_exist_ok=True)
    chain = read_json(today / "modules.json")
    for module in chain[1:]:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
        shutil.copytree(today / module["path"], directory / module["path"])
    chain[0] |= {"path": path, "type": "sentence_transformers.models.CLIPModel"}
    write_json(directory / "modules.json", chain)
    write_json(directory / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    side = {"size": test_clip.IMAGE, "crop_size": test_clip.IMAGE}
    file = directory / path / "preprocessor_config.json"
    edit_json(file, image_processor_type=..., feature_extractor_type="CLIPFeatureExtractor", **side)
    return directory


def _first_in_the_root(directory: Path, backbone: Path, *modules: nn.Module) -> Path:
    return _first(directory, backbone, *modules, path="")


FORMATS: dict[str, Callable[..., Path]] = {
    "today": _today,
    "today-CLIPModel": _today_by_its_old_name,
    "first": _first,
    "first-in-the-root": _first_in_the_root,
}
HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "bare": list,
    "normalize": lambda: [Normalize()],
    "dense-layer-norm": lambda: [Dense(WIDTH, 20), LayerNorm(20)],
    "dense-normalize": lambda: [Dense(WIDTH, 50, bias=False, activation_function=nn.GELU()), Normalize()],
}


def assert_same_vectors(directory: Path) -> np.ndarray:
    """Both libraries' vectors of texts and pictures, compared; returns them."""
    texts, images = list(TEXTS), pictures()
    reference = SentenceTransformer(str(directory), device="cpu")
    expected = np.concatenate([reference.encode(texts), reference.encode(images)])
    with LLM(directory, dtype="float32", data_parallel_size=1) as llm:
        outputs = llm.embed([*texts, *images], truncate_prompt_tokens=-1, use_tqdm=False)
    vectors = np.array([output.outputs.embedding for output in outputs])
    assert np.abs(expected).max() > 0.05
    assert_close(vectors, expected)
    return vectors


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("version", FORMATS)
def test_texts_and_pictures(version: str, head: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    directory = FORMATS[version](tmp_path / "model", backbones["clip"], *HEADS[head]())
    vectors = assert_same_vectors(directory)
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == head.endswith("normalize")


def test_tokenizers_of_two_files(backbones: dict[str, Path], tmp_path: Path) -> None:
    """CLIP's first releases have no tokenizer.json."""
    directory = _first(tmp_path / "model", backbones["clip"])
    folder = directory / "0_CLIPModel"
    (folder / "tokenizer.json").unlink()
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz,.!"] + ["th", "the</w>", "fo", "fox</w>"]
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\nf o\nfo x</w>\n")
    tokens = {"bos_token": special[0], **dict.fromkeys(("eos_token", "unk_token", "pad_token"), special[1])}
    length = {"model_max_length": test_clip.LENGTH}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **tokens, **length})
    texts = ["", "The FOX", "the quick  brown fox, jumps!", "fox " * 40]
    expected = SentenceTransformer(str(directory), device="cpu").encode(texts)
    with LLM(directory, dtype="float32", data_parallel_size=1) as llm:
        assert_close(llm.embed_array(texts), expected)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_padded_as_it_was_trained(kind: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    width = read_recipe(backbones[kind]).config.hidden_size
    modules = [Dense(width, 20), Normalize()]
    assert_same_vectors(_today(tmp_path / "model", backbones[kind], *modules, processing_kwargs=PADDED))


def test_siglip_padded_to_the_tokenizers_length(backbones: dict[str, Path], tmp_path: Path) -> None:
    padded = {"text": {"padding": "max_length"}}
    assert_same_vectors(_today(tmp_path / "model", backbones["siglip"], processing_kwargs=padded))


def test_siglip_whose_padding_nobody_names_is_padded_too(backbones: dict[str, Path], tmp_path: Path) -> None:
    vectors = []
    for name, settings in (("named", {"processing_kwargs": PADDED}), ("unnamed", {})):
        directory = _today(tmp_path / name, backbones["siglip"], **settings)
        with LLM(directory, dtype="float32", data_parallel_size=1) as llm:
            (output,) = llm.embed("the quick fox", use_tqdm=False)
        vectors.append(output.outputs.embedding)
    assert_close(*vectors)


# What is refused

TEXT = {"method": "get_text_features", "method_output_name": "pooler_output"}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"module_output_name": "token_embeddings"}, "`module_output_name` is 'token_embeddings'"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}},
         "`modality_config` reads 'text' by .*'forward'"),
        ({"modality_config": {"text": TEXT, "image": TEXT}}, "`modality_config` reads 'image' by .*text_features"),
        ({"modality_config": {"text": TEXT, "audio": TEXT}}, "`modality_config` reads 'audio'"),
        ({"modality_config": ...}, "`modality_config` is missing"),
        ({"processing_kwargs": {"image": {"do_center_crop": False}}}, "`processing_kwargs` is .*do_center_crop"),
        ({"processing_kwargs": PADDED}, "`processing_kwargs` is .*max_length"),
    ],
)  # fmt: skip
def test_settings_that_are_not_understood(
    edits: dict[str, Any], message: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    directory = _today(tmp_path / "model", backbones["clip"])
    edit_json(directory / FILE, **edits)
    with pytest.raises(ValueError, match=rf"{FILE}: {message}"):
        read_recipe(directory)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"processing_kwargs": {"text": {"padding": "max_length", "max_length": 12}}}, "`processing_kwargs` is .*12"),
        ({"processor_kwargs": {"padding_side": "left"}}, "`processor_kwargs` sets .*padding_side"),
    ],
)
def test_another_padding_than_the_models(
    edits: dict[str, Any], message: str, backbones: dict[str, Path], tmp_path: Path
) -> None:
    directory = _today(tmp_path / "model", backbones["siglip"])
    edit_json(directory / FILE, **edits)
    with pytest.raises(ValueError, match=rf"{FILE}: {message}"):
        read_recipe(directory)


def test_no_pooling_behind_vectors(backbones: dict[str, Path], tmp_path: Path) -> None:
    directory = _today(tmp_path / "model", backbones["clip"], Pooling(WIDTH))
    with pytest.raises(ValueError, match=r"modules\.json: a Pooling module behind vectors of whole texts"):
        read_recipe(directory)


def test_a_clip_model_is_one(tmp_path: Path) -> None:
    write_bert(tmp_path, "bert")
    write_json(tmp_path / "modules.json", [{"path": "", "type": "sentence_transformers.models.CLIPModel"}])
    with pytest.raises(ValueError, match=r"modules\.json: 'sentence_transformers\.models\.CLIPModel' around a model"):
        read_recipe(tmp_path)
