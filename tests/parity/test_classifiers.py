"""Classifiers, token classifiers and cross-encoders against torch: transformers' heads, sentence-transformers' scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import jaxpool
from jaxpool import LLM, PoolingParams
from jaxpool.convert import to_flax, to_hf
from jaxpool.heads import FINAL
from jaxpool.params import flatten
from jaxpool.recipe import read_recipe
from tests.parity.checkpoints import SIZES, TEXTS, assert_close, edit_json, randomise, read_json
from tests.parity.decoder_tokenizers import write_decoder_tokenizer
from tests.parity.encoder_tokenizers import write_encoder_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

LENGTH = 24
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "identity": lambda logits: logits,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


class Kind(NamedTuple):
    """The tokenizer of an architecture, and sizes that share no factor with a vector unit's."""

    tokenizer: str
    sizes: dict[str, Any]


DECODER = SIZES | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "bos_token_id": 1}
DISTILBERT = {"dim": 36, "n_heads": 3, "hidden_dim": 50, "n_layers": 2, "max_position_embeddings": 48}
KINDS = {
    "Bert": Kind("bert", SIZES),
    "Roberta": Kind("roberta", SIZES | {"max_position_embeddings": 50}),
    "XLMRoberta": Kind("xlm-roberta", SIZES | {"type_vocab_size": 1}),
    "Camembert": Kind("camembert", SIZES),
    "MPNet": Kind("mpnet", SIZES),
    "DistilBert": Kind("distilbert", DISTILBERT),
    "ModernBert": Kind("modernbert", SIZES | {"local_attention": 8, "num_hidden_layers": 3, "pad_token_id": 0}),
    "Llama": Kind("Llama", DECODER),
    "Mistral": Kind("Mistral", DECODER | {"sliding_window": 5}),
    "Qwen2": Kind("Qwen", DECODER | {"head_dim": 6}),
    "Qwen3": Kind("Qwen", DECODER),
    "Gemma": Kind("Gemma", DECODER),
    "Gemma2": Kind("Gemma", DECODER | {"sliding_window": 7, "attn_logit_softcapping": 2.0}),
    "Gemma3Text": Kind("Gemma", DECODER | {"sliding_window": 7, "query_pre_attn_scalar": 21}),
}
DECODERS = tuple(list(KINDS)[list(KINDS).index("Llama") :])
SCALED = {"ModernBert", *DECODERS}  # no norm on the residual stream: of large weights float32 is far from exact

MODERN = {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}
LINEAR, ACTIVATION = "torch.nn.modules.linear", "torch.nn.modules.activation"


def saved(name: str) -> dict[str, Any]:
    return {"sentence_transformers": {"activation_fn": name, "version": "4.1.0"}}


def older(name: str | None) -> dict[str, Any]:
    return {"sbert_ce_default_activation_function": name}


REGRESSION, SINGLE, MULTI = (
    {"problem_type": name}
    for name in ("regression", "single_label_classification", "multi_label_classification")
)  # fmt: skip

# name -> (architecture, labels, config, the last step)
CLASSIFIERS: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "bert": ("Bert", 2, {}, "softmax"),
    "bert-multi": ("Bert", 5, MULTI, "sigmoid"),
    "bert-sigmoid-of-two": ("Bert", 2, older(f"{ACTIVATION}.Sigmoid"), "sigmoid"),
    "roberta": ("Roberta", 3, SINGLE, "softmax"),
    "xlm-roberta": ("XLMRoberta", 5, {}, "softmax"),
    "camembert": ("Camembert", 1, REGRESSION | {"hidden_act": "gelu_new"}, "identity"),
    "mpnet": ("MPNet", 3, {}, "softmax"),
    "distilbert": ("DistilBert", 2, MULTI | {"activation": "relu"}, "sigmoid"),
    "modernbert": ("ModernBert", 2, {}, "softmax"),
    "modernbert-mean": ("ModernBert", 3, MODERN, "softmax"),
    "modernbert-mean-bare": ("ModernBert", 1, {"classifier_pooling": "mean", "norm_eps": 1e-3}, "sigmoid"),
    "modernbert-cls-odd": ("ModernBert", 5, MODERN | {"classifier_pooling": "cls"}, "softmax"),
    "llama": ("Llama", 2, {}, "softmax"),
    "mistral": ("Mistral", 3, {}, "softmax"),
    "qwen2": ("Qwen2", 1, {}, "sigmoid"),
    "qwen3": ("Qwen3", 5, MULTI, "sigmoid"),
    "gemma": ("Gemma", 2, {}, "softmax"),
    "gemma2": ("Gemma2", 3, {}, "softmax"),
    "gemma3": ("Gemma3Text", 1, REGRESSION, "identity"),
}
ENDINGS = {"classify": "ForSequenceClassification", "token": "ForTokenClassification", "causal": "ForCausalLM"}


@cache
def tokenizer_directory(kind: str) -> Path:
    directory = Path(mkdtemp())
    if kind in ("Llama", "Mistral", "Qwen", "Gemma"):
        write_decoder_tokenizer(directory, kind)
    else:
        write_encoder_tokenizer(directory, kind)
    return directory


def write(
    directory: Path, architecture: str, ending: str = "classify", labels: int = 2, *,
    dtype: torch.dtype = torch.float32, shard: str = "1GB", edits: dict[str, Any] | None = None, **config: Any,
) -> Path:  # fmt: skip
    """A random checkpoint with its tokenizer; `edits` go over config.json. The padding token stands in no text."""
    kind = KINDS[architecture]
    shutil.copytree(tokenizer_directory(kind.tokenizer), directory, dirs_exist_ok=True)
    edit_json(directory / "tokenizer_config.json", model_max_length=LENGTH)
    vocab = len(AutoTokenizer.from_pretrained(directory))
    padding = {"vocab_size": vocab + 1, "pad_token_id": vocab} if architecture in DECODERS else {"vocab_size": vocab}
    made = getattr(transformers, f"{architecture}Config")(**kind.sizes | padding | {"num_labels": labels} | config)
    stem = architecture.removesuffix("Text") if ending == "causal" else architecture
    model = getattr(transformers, stem + ENDINGS[ending])(made)
    randomise(model)
    if architecture in SCALED:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter *= 0.4 if "layers." in name and parameter.ndim == 2 else 1
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    edit_json(directory / "config.json", **(edits or {}))
    return directory


def reload(directory: Path) -> PreTrainedModel:
    """torch's side, from the files."""
    (name,) = read_json(directory / "config.json")["architectures"]
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    return getattr(transformers, name).from_pretrained(directory, **how).eval()


def read_ids(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts]


@torch.inference_mode()
def reference(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The logits of texts, each alone."""
    return [model(input_ids=torch.tensor([text])).logits[0] for text in ids]


def open_llm(directory: Path, task: str = "auto", **arguments: Any) -> LLM:
    settings: dict[str, Any] = {"dtype": "float32", "data_parallel_size": 1, "max_num_batched_tokens": 2 * LENGTH}
    return LLM(directory, task=task, **settings | arguments)


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """torch's threads cost more than they bring at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# One answer a text

FLAGS = (
    (PoolingParams(), True),
    (PoolingParams(use_activation=False), False),
    (PoolingParams(use_activation=True), True),
    (PoolingParams(softmax=False), False),
    (PoolingParams(activation=False), False),
)


def compare_classes(directory: Path, final: str, *, task: str = "auto", texts: Sequence[str] = TEXTS) -> None:
    """Probabilities and raw logits, mixed in one call."""
    ids = read_ids(directory, texts)
    logits = reference(reload(directory), ids)
    params, activated = zip(*(flag for _, flag in zip(texts, cycle(FLAGS), strict=False)), strict=True)
    with open_llm(directory, task) as llm:
        assert llm.task == "classify"
        outputs = llm.classify(texts, pooling_params=params, truncate_prompt_tokens=-1, use_tqdm=False)
    for output, own, expected, active in zip(outputs, ids, logits, activated, strict=True):
        assert output.prompt_token_ids == own
        assert_close(output.outputs.probs, FUNCTIONS[final](expected) if active else expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classes_are_torchs(name: str, tmp_path: Path) -> None:
    architecture, labels, config, final = CLASSIFIERS[name]
    write(tmp_path, architecture, labels=labels, **config)
    compare_classes(tmp_path, final, task="classify" if labels > 2 else "auto")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("bert", {"dtype": torch.bfloat16}),
        ("modernbert-mean", {"dtype": torch.bfloat16, "shard": "8KB"}),
        ("roberta", {"shard": "8KB"}),
        ("gemma2", {"dtype": torch.bfloat16, "shard": "8KB"}),
        ("qwen3", {"shard": "8KB"}),
    ],
)
def test_stored_otherwise(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    architecture, labels, config, final = CLASSIFIERS[name]
    write(tmp_path, architecture, labels=labels, **how, **config)
    assert len(list(tmp_path.glob("model*.safetensors"))) > (1 if "shard" in how else 0)
    compare_classes(tmp_path, final, texts=TEXTS[1:13])


# Which last step

STEPS: dict[str, tuple[int, dict[str, Any], str]] = {
    "identity": (1, older(f"{LINEAR}.Identity"), "identity"),
    "identity of two": (2, older(f"{LINEAR}.Identity"), "identity"),
    "sigmoid": (1, older(f"{ACTIVATION}.Sigmoid"), "sigmoid"),
    "sigmoid of two": (2, older(f"{ACTIVATION}.Sigmoid"), "sigmoid"),
    "nothing said": (1, older(None) | {"sentence_transformers": {"version": "4.0.1"}}, "sigmoid"),
    "new": (3, saved(f"{ACTIVATION}.Sigmoid"), "sigmoid"),
    "new before old": (2, saved(f"{ACTIVATION}.Tanh") | older(f"{LINEAR}.Identity"), "tanh"),
    "relu": (2, saved(f"{ACTIVATION}.ReLU"), "relu"),
    "gelu": (2, saved(f"{ACTIVATION}.GELU"), "gelu"),
    "silu": (2, saved(f"{ACTIVATION}.SiLU"), "silu"),
    "problem type first": (2, SINGLE | older(f"{LINEAR}.Identity"), "softmax"),
    "problem type null": (2, {"problem_type": None, **older(f"{LINEAR}.Identity")}, "identity"),
}


@pytest.mark.parametrize("name", STEPS)
def test_last_step(name: str, tmp_path: Path) -> None:
    labels, edits, final = STEPS[name]
    recipe = read_recipe(write(tmp_path, "Bert", labels=labels, edits=edits))
    assert (recipe.task, recipe.final, recipe.activate) == ("classify", final, True)
    logits = torch.linspace(-9, 9, 30).reshape(10, 3)
    assert_close(FINAL[final](logits.numpy()), FUNCTIONS[final](logits))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (older("os.system"), r"sbert_ce_default_activation_function.*restricted to torch.nn.modules"),
        (older("torch.hub.load"), r"sbert_ce_default_activation_function.*restricted to torch.nn.modules"),
        (older("my_code.Identity"), r"sbert_ce_default_activation_function.*restricted to torch.nn.modules"),
        (older(f"{ACTIVATION}.Hardsigmoid"), "sbert_ce_default_activation_function.*expected one of"),
        (older("torch.nn.modules.module.Identity"), "sbert_ce_default_activation_function.*expected one of"),
        (saved("numpy.tanh"), r"sentence_transformers.activation_fn.*restricted to torch.nn.modules"),
        (saved(f"{ACTIVATION}.Softsign"), "sentence_transformers.activation_fn.*expected one of"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"num_labels": 4, "id2label": {"0": "a", "1": "b"}}, "num_labels.*id2label"),
    ],
)
def test_foreign_names_are_refused(edits: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, "Bert", edits=edits)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path, task="classify")


# One answer a token

TOKEN_CLASSIFIERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "bert": ("Bert", 5, {}),
    "roberta": ("Roberta", 3, {}),
    "distilbert": ("DistilBert", 2, {}),
    "mpnet": ("MPNet", 3, {}),
    "modernbert": ("ModernBert", 3, {}),
    "modernbert-odd": ("ModernBert", 5, MODERN),
}


@pytest.mark.parametrize("name", TOKEN_CLASSIFIERS)
def test_tokens_classes_are_torchs(name: str, tmp_path: Path) -> None:
    architecture, labels, config = TOKEN_CLASSIFIERS[name]
    write(tmp_path, architecture, "token", labels, **config)
    logits = reference(reload(tmp_path), read_ids(tmp_path, TEXTS))
    raw = [i % 3 == 1 for i in range(len(TEXTS))]
    params = [PoolingParams(use_activation=False) if bare else PoolingParams() for bare in raw]
    with open_llm(tmp_path) as llm:
        assert llm.task == "token_classify"
        outputs = llm.encode(TEXTS, params, truncate_prompt_tokens=-1, use_tqdm=False)
    for output, expected, bare in zip(outputs, logits, raw, strict=True):
        assert output.outputs.data.shape[1] == labels
        assert_close(output.outputs.data, expected if bare else expected.softmax(-1))


# The same checkpoints for other ends

BOTH = {name: ("classify", *entry[:3]) for name, entry in CLASSIFIERS.items()} | {
    f"{name}-tokens": ("token", *entry) for name, entry in TOKEN_CLASSIFIERS.items()
}


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {key: tensor for file in directory.glob("*.safetensors") for key, tensor in load_file(file).items()}


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert np.asarray(ours[key]).tobytes() == np.asarray(tensor).tobytes(), key


@pytest.mark.parametrize(
    "name", sorted(BOTH.keys() - {"bert-multi", "roberta-tokens", "mpnet-tokens", "modernbert-tokens"})
)
def test_converts_and_back(name: str, tmp_path: Path) -> None:
    ending, architecture, labels, config = BOTH[name]
    dtype = torch.bfloat16 if name in ("bert", "modernbert-mean", "qwen3") else torch.float32
    source = write(tmp_path / "source", architecture, ending, labels, dtype=dtype, **config)
    to_flax(source, tmp_path / "flax")
    to_flax(tmp_path / "flax", tmp_path / "again")
    params = flatten(jaxpool.load(source).params)
    assert any(path.startswith("head/") for path in params)
    assert_same_bits(flatten(jaxpool.load(tmp_path / "flax").params), params)
    assert_same_bits(weights(tmp_path / "again"), weights(tmp_path / "flax"))
    to_hf(tmp_path / "flax", tmp_path / "back")
    (written,) = read_json(source / "config.json")["architectures"]
    ours, theirs = getattr(transformers, written).from_pretrained(tmp_path / "back"), reload(source)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key].float(), tensor), key
    stored, restored = read_recipe(source), read_recipe(tmp_path / "back")
    assert (stored.modules, stored.final, stored.pooling) == (restored.modules, restored.final, restored.pooling)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert-mean", "qwen3"])
def test_as_embedders_and_functions(name: str, tmp_path: Path) -> None:
    architecture, labels, config, final = CLASSIFIERS[name]
    write(tmp_path, architecture, labels=labels, **config)
    texts, place = list(TEXTS[:9]), -1 if architecture in DECODERS else 0
    ids = read_ids(tmp_path, texts)
    base = AutoModel.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        hidden = torch.stack([base(input_ids=torch.tensor([text])).last_hidden_state[0, place] for text in ids])
    with open_llm(tmp_path, "embed") as llm:
        assert_close(llm.embed_array(texts), torch.nn.functional.normalize(hidden, dim=-1))
    model = jaxpool.load(tmp_path, task="classify")
    logits = torch.stack(reference(reload(tmp_path), ids))
    assert_close(jax.jit(model.apply)(model.params, model.tokenize(texts)), FUNCTIONS[final](logits))


# Cross-encoders

LONG = "seven wizards box with jugs of liquid, naïve café! "
PAIRS = [
    ("fox", "the lazy dog"),
    ("the quick brown fox jumps over the lazy dog", "naïve café"),
    ("a stitch in time saves nine; don't count", "your chickens before they hatch! a stitch in time saves nine"),
    ("fox", LONG * 30),
    (LONG * 30, "fox"),
    (LONG * 20, LONG * 21),
    ("", "fox"),
    ("  blanks ", "\tin front\n"),
    ("東京の日本語 🙂", "نص عربي שלום русский ТЕКСТ"),
    ("e\u0301 \u0130 ß", "STRASSE \ufffd \u200b"),
]
DOCUMENTS = [document for _, document in PAIRS] + list(TEXTS[2:4])

# name -> (architecture, config, edits of config.json)
CROSS_ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ms-marco": ("Bert", {}, older(f"{LINEAR}.Identity")),
    "bert": ("Bert", {"type_vocab_size": 3}, {}),
    "bge": ("XLMRoberta", {}, {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}, older(f"{ACTIVATION}.Sigmoid")),
    "camembert": ("Camembert", {"type_vocab_size": 1}, {}),
    "modernbert": ("ModernBert", MODERN, saved(f"{LINEAR}.Identity")),
    "distilbert": ("DistilBert", {}, saved(f"{ACTIVATION}.Sigmoid")),
    "mpnet": ("MPNet", {}, {}),
}


def write_cross_encoder(directory: Path, name: str, labels: int = 1) -> Path:
    architecture, config, edits = CROSS_ENCODERS[name]
    return write(directory, architecture, labels=labels, edits=edits, **config)


def open_cross_encoder(directory: Path, **arguments: Any) -> CrossEncoder:
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    return CrossEncoder(str(directory), device="cpu", model_kwargs=settings, **arguments)


def scores(llm: LLM, first: Any, second: Any, **arguments: Any) -> list[float]:
    outputs = llm.score(first, second, **{"truncate_prompt_tokens": -1, "use_tqdm": False} | arguments)
    return [output.outputs.score for output in outputs]


def compare_scores(llm: LLM, theirs: CrossEncoder, **arguments: Any) -> None:
    """N:N, 1:N, 1:1 and a ranking."""
    first, second = ([*side] for side in zip(*PAIRS, strict=True))
    predict: Callable[[Any], np.ndarray] = lambda pairs: theirs.predict(pairs, batch_size=5)  # noqa: E731
    expected = predict(PAIRS)
    assert np.ptp(expected) > 0.01
    assert_close(scores(llm, first, second, **arguments), expected)
    assert_close(scores(llm, first[0], second[:3], **arguments), predict([(first[0], text) for text in second[:3]]))
    assert_close(scores(llm, first[2], second[2], **arguments), predict([PAIRS[2]]))
    ranking = theirs.rank(first[1], DOCUMENTS, top_k=7, return_documents=True)
    ours = llm.rerank(first[1], DOCUMENTS, top_n=7, return_documents=True, **arguments)
    # By texts: torch's scores of one that is there twice may differ in their last bit, either way.
    assert [own.document for own in ours] == [own["text"] for own in ranking]
    assert [DOCUMENTS[own.index] for own in ours] == [own.document for own in ours]
    assert_close([own.score for own in ours], [own["score"] for own in ranking])


@pytest.mark.parametrize("name", CROSS_ENCODERS)
def test_cross_encoder(name: str, tmp_path: Path) -> None:
    """A plain directory, and what sentence-transformers 6 makes of it."""
    plain = write_cross_encoder(tmp_path / "plain", name)
    theirs = open_cross_encoder(plain)
    theirs.save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").exists()
    for directory in (plain, tmp_path / "saved"):
        with open_llm(directory, "score") as llm:
            assert llm.recipe.max_length == theirs.max_seq_length == LENGTH
            compare_scores(llm, theirs)


@pytest.mark.parametrize(("name", "length"), [("ms-marco", 9), ("bge", 13)])
def test_shorter(name: str, length: int, tmp_path: Path) -> None:
    theirs = open_cross_encoder(write_cross_encoder(tmp_path / "plain", name), max_length=length)
    first, second = ([*side] for side in zip(*PAIRS, strict=True))
    expected = theirs.predict(PAIRS)
    with open_llm(tmp_path / "plain", "score") as llm:
        assert_close(scores(llm, first, second, truncate_prompt_tokens=length), expected)
        one_each = [PoolingParams(truncate_prompt_tokens=length)] * len(PAIRS)
        assert_close(scores(llm, first, second, pooling_params=one_each, truncate_prompt_tokens=None), expected)
    theirs.save_pretrained(str(tmp_path / "saved"))
    with open_llm(tmp_path / "saved") as llm:
        assert (llm.task, llm.recipe.max_length) == ("classify", length)
        assert_close(scores(llm, first, second), expected)


def test_empty_documents(tmp_path: Path) -> None:
    """A pair stays a pair, as sentence-transformers reads it; transformers drops an empty second text by itself."""
    theirs = open_cross_encoder(write_cross_encoder(tmp_path, "ms-marco"))
    pairs = [("fox", ""), ("", "")]
    with open_llm(tmp_path, "score") as llm:
        assert_close(scores(llm, *map(list, zip(*pairs, strict=True))), theirs.predict(pairs))


def test_raw_scores(tmp_path: Path) -> None:
    theirs = open_cross_encoder(write_cross_encoder(tmp_path, "bge"))
    params = [PoolingParams(use_activation=i % 2 == 0) for i in range(len(PAIRS))]
    raw = torch.from_numpy(theirs.predict(PAIRS, activation_fn=torch.nn.Identity()))
    expected = torch.where(torch.arange(len(PAIRS)) % 2 == 0, raw.sigmoid(), raw)
    first, second = ([*side] for side in zip(*PAIRS, strict=True))
    with open_llm(tmp_path, "score") as llm:
        assert_close(scores(llm, first, second, pooling_params=params), expected)


@pytest.mark.parametrize(("name", "stored"), [("bert", "plain"), ("bge", "saved")])
def test_pairs_of_three_classes(name: str, stored: str, tmp_path: Path) -> None:
    """As of natural language inference: no score, but classes of pairs given as ids with token types."""
    theirs = open_cross_encoder(write_cross_encoder(tmp_path / "plain", name, labels=3))
    theirs.save_pretrained(str(tmp_path / "saved"))
    prompts = []
    for first, second in PAIRS:
        read = theirs.tokenizer(text=first, text_pair=second, truncation=True, max_length=LENGTH)
        types = {"token_type_ids": read["token_type_ids"]} if "token_type_ids" in read else {}
        prompts.append({"prompt_token_ids": read["input_ids"], **types})
    with open_llm(tmp_path / stored) as llm:
        outputs = llm.classify(prompts, use_tqdm=False)
        with pytest.raises(ValueError, match="num_labels == 1"):
            llm.score("fox", "dog")
    # The saved directory names sentence-transformers' default, Identity; the plain one names nothing.
    expected = theirs.predict(PAIRS, apply_softmax=stored == "plain")
    assert_close([output.outputs.probs for output in outputs], expected)


# Language models that score

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}score:\n"
)


def write_logit_score(
    directory: Path, architecture: str, ids: Sequence[int], *, template: str | None = None,
    transformer: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **settings: Any,
) -> CrossEncoder:  # fmt: skip
    """A language model with a LogitScore, saved."""
    write(directory / "lm", architecture, "causal", **(config or {}))
    edit_json(directory / "lm" / "tokenizer_config.json", model_max_length=2 * LENGTH, chat_template=template)
    how = {"model_kwargs": {"dtype": torch.float32, "attn_implementation": "eager"}, **(transformer or {})}
    modules = [Transformer(str(directory / "lm"), transformer_task="text-generation", **how), LogitScore(*ids)]
    model = CrossEncoder(modules=modules, device="cpu", **settings)
    model.save_pretrained(str(directory / "saved"))
    return model


@pytest.mark.parametrize(
    ("architecture", "ids"), [("Llama", (30, 41)), ("Llama", (17,)), ("Qwen3", (30, 41)), ("Gemma", (17,))]
)
def test_logit_score_of_texts(architecture: str, ids: tuple[int, ...], tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": architecture != "Llama"}
    theirs = write_logit_score(tmp_path, architecture, ids, config=tied)
    assert "message" not in theirs[0].modality_config
    with open_llm(tmp_path / "saved") as llm:
        first, second = ([*side] for side in zip(*PAIRS, strict=True))
        assert_close(scores(llm, first, second), theirs.predict(PAIRS))
        raw = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
        assert_close(scores(llm, first, second, pooling_params=PoolingParams(use_activation=False)), raw)


INSTRUCTION = "seven wizards: "


@pytest.mark.parametrize(("architecture", "generation"), [("Llama", True), ("Qwen3", False)])
def test_logit_score_of_messages(architecture: str, generation: bool, tmp_path: Path) -> None:
    """The template has all special tokens; an instruction is the system's message."""
    how = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}} if generation else {}
    config = {"max_position_embeddings": 200}
    theirs = write_logit_score(tmp_path, architecture, (30, 41), template=TEMPLATE, transformer=how, config=config)
    assert "message" in theirs[0].modality_config
    theirs.max_seq_length = 200
    theirs.save_pretrained(str(tmp_path / "saved"))
    pairs = [pair for pair in PAIRS if len("".join(pair)) < 100]
    first, second = ([*side] for side in zip(*pairs, strict=True))
    with open_llm(tmp_path / "saved", max_num_batched_tokens=256) as llm:
        for prompt in (None, INSTRUCTION):
            outputs = llm.score(first, second, instruction=prompt, use_tqdm=False)
            for output, pair in zip(outputs, pairs, strict=True):
                assert output.prompt_token_ids == theirs.preprocess([pair], prompt=prompt)["input_ids"][0].tolist()
            assert_close([output.outputs.score for output in outputs], theirs.predict(pairs, prompt=prompt))
        assert [own.index for own in llm.rerank(first[1], second, instruction=INSTRUCTION)] == [
            own["corpus_id"] for own in theirs.rank(first[1], second, prompt=INSTRUCTION)
        ]
