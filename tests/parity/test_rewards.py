"""Reward models against torch (InternLM2: against numpy): a value a token, a step, or the states themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpool import LLM, PoolerConfig, PoolingParams
from jaxpool.batch import Inputs
from jaxpool.params import flatten
from jaxpool.placement import load_to_mesh
from jaxpool.program import make_program, param_specs
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import assert_close, edit_json
from tests.parity.language_models import make, randomise, save, states, write_words
from tests.parity.test_internlm2 import CONFIG as INTERNLM2
from tests.parity.test_internlm2 import reference as internlm2_reference
from tests.parity.test_internlm2 import write as write_internlm2

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

LENGTH = 64
STEP, OTHER = "<extra_0>", "<|im_end|>"
TEXTS = [
    f"the quick fox{STEP} jumps over the lazy dog{STEP}",
    "naïve café 東京",
    f"{STEP}{STEP} a stitch{OTHER} in time{STEP} saves nine{OTHER}",
    f"seven wizards box with jugs of liquid, seven wizards{OTHER} box{STEP} with",
]


def engine(directory: Path, **how: Any) -> LLM:
    return LLM(directory, **{"dtype": "float32", "data_parallel_size": 1, "max_num_batched_tokens": LENGTH, **how})


def rewards(llm: LLM, texts: Sequence[str] = TEXTS, **how: Any) -> list[np.ndarray]:
    return [output.outputs.data for output in llm.reward(list(texts), use_tqdm=False, **how)]


def assert_all_close(ours: Sequence[Any], theirs: Sequence[Any], tolerance: float = 1e-4) -> None:
    """No entry of a text further apart than `tolerance` of its largest."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, map(np.asarray, theirs), strict=True):
        scale = max(np.abs(other).max(initial=0), 1e-3)
        assert_close(one / scale, other / scale, tolerance)


def token_ids(directory: Path, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text)["input_ids"] for text in texts]


class Torch:
    """A Qwen2 with Qwen2.5-Math's head of two layers: what torch makes of texts, and its files."""

    def __init__(
        self, directory: Path, labels: int, *, dtype: torch.dtype = torch.float32, shards: int = 0, **config: Any
    ):
        tokenizer = write_words(directory, "Qwen2", added={STEP: True})
        sizes = {"max_position_embeddings": LENGTH, **config}
        backbone = make("Qwen2", "Model", tokenizer.get_vocab_size(), **sizes)
        score = torch.nn.Sequential(torch.nn.Linear(36, 36), torch.nn.ReLU(), torch.nn.Linear(36, labels))
        randomise(score, 1, ones=False)
        self.model = torch.nn.ModuleDict({"model": backbone, "score": score})
        name = "Qwen2ForRewardModel" if labels == 1 else "Qwen2ForProcessRewardModel"
        state = {key: value.to(dtype) for key, value in self.model.state_dict().items()}
        save(directory, name, backbone.config, state, shards=shards)
        self.model.load_state_dict(state)
        self.ids = token_ids(directory)
        self.tags = {tag: tokenizer.token_to_id(tag) for tag in (STEP, OTHER)}
        self.directory = directory

    def values(self) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [self.model["score"](states(self.model["model"], ids)) for ids in self.ids]

    def steps(self, tag: str = STEP) -> list[torch.Tensor]:
        """The card's: the two classes' probabilities at each step's end."""
        at = [torch.tensor(ids) == self.tags[tag] for ids in self.ids]
        return [value.softmax(-1)[here] for value, here in zip(self.values(), at, strict=True)]


# Qwen2.5-Math-RM


@pytest.fixture(scope="module")
def value_model(tmp_path_factory: pytest.TempPathFactory) -> Torch:
    return Torch(tmp_path_factory.mktemp("rm"), 1)


@pytest.mark.parametrize("how", [{}, {"task": "reward"}, {"convert": "reward"}, {"task": "token_classify"}], ids=str)
def test_a_value_a_token(value_model: Torch, how: dict[str, Any]) -> None:
    with engine(value_model.directory, **how) as llm:
        assert llm.task == "token_classify"
        outputs = llm.encode(TEXTS, use_tqdm=False)
        assert [output.prompt_token_ids for output in outputs] == value_model.ids
        assert [output.outputs.data.shape for output in outputs] == [(len(ids), 1) for ids in value_model.ids]
        assert_all_close([output.outputs.data for output in outputs], value_model.values())
        assert_all_close(rewards(llm), value_model.values())
        asked = llm.encode(TEXTS, use_tqdm=False, pooling_task="encode")
        assert_all_close([output.outputs.data for output in asked], value_model.values())


def test_what_gives_rewards_gives_nothing_else(value_model: Torch) -> None:
    with engine(value_model.directory) as llm:
        with pytest.raises(ValueError, match="Embedding API is not supported"):
            llm.embed(TEXTS, use_tqdm=False)
        with pytest.raises(ValueError, match="does not support .*step_tag_id"):
            rewards(llm, pooling_params=PoolingParams(step_tag_id=3))
    with pytest.raises(ValueError, match="does not support the Scoring API"):
        engine(value_model.directory, task="score")


# Qwen2.5-Math-PRM


@pytest.fixture(scope="module")
def process_model(tmp_path_factory: pytest.TempPathFactory) -> Torch:
    return Torch(tmp_path_factory.mktemp("prm"), 2)


@pytest.mark.parametrize("old", [True, False])
def test_steps(process_model: Torch, old: bool) -> None:
    values = {"pooling_type": "STEP", "step_tag_id": process_model.tags[STEP]}
    how = {"override_pooler_config": PoolerConfig(**values), "task": "reward"} if old else {"pooler_config": values}
    with engine(process_model.directory, **how) as llm:
        ours, theirs = rewards(llm), process_model.steps()
        assert [rows.shape for rows in ours] == [(2, 2), (0, 2), (3, 2), (1, 2)]
        assert_all_close(ours, theirs, 1e-5)
        encoded = llm.encode(TEXTS, use_tqdm=False)
        assert_all_close([output.outputs.data for output in encoded], theirs, 1e-5)
        before = llm.stats.compilations
        # Each request may ask for another tag, and for logits.
        params = [PoolingParams(step_tag_id=process_model.tags[OTHER]), PoolingParams(step_tag_id=0),
                  PoolingParams(step_tag_id=process_model.tags[OTHER], softmax=False), PoolingParams()]  # fmt: skip
        mixed = rewards(llm, pooling_params=params)
        other = process_model.steps(OTHER)
        assert_all_close(mixed[:2] + mixed[3:], [other[0], np.zeros((0, 2)), theirs[3]], 1e-5)
        at = torch.tensor(process_model.ids[2]) == process_model.tags[OTHER]
        assert_all_close(mixed[2:3], [process_model.values()[2][at]])
        assert llm.stats.compilations == before


@pytest.mark.parametrize(
    "pooling", [None, {"pooling_type": "ALL"}, {"tok_pooling_type": "STEP"}, {"pooling_type": "STEP"}], ids=str
)
def test_every_token_without_a_tag(process_model: Torch, pooling: Any) -> None:
    with engine(process_model.directory, pooler_config=pooling, task="reward") as llm:
        assert_all_close(rewards(llm), [value.softmax(-1) for value in process_model.values()], 1e-5)
        raw = rewards(llm, pooling_params=PoolingParams(activation=False))
        assert_all_close(raw, process_model.values())


def test_logits_and_columns_of_steps(process_model: Torch) -> None:
    step = {"pooling_type": "STEP", "step_tag_id": process_model.tags[STEP]}
    at = [torch.tensor(ids) == process_model.tags[STEP] for ids in process_model.ids]
    logits = [value[here] for value, here in zip(process_model.values(), at, strict=True)]
    with engine(process_model.directory, pooler_config=step | {"softmax": False}) as llm:
        assert_all_close(rewards(llm), logits)
    # vLLM's order: columns, rows, then the head, where one column is a probability of its own.
    for columns in ([1], [1, 0]):
        own = [value[:, columns] for value in logits]
        own = [value.sigmoid() if len(columns) == 1 else value.softmax(-1) for value in own]
        with engine(process_model.directory, pooler_config=step | {"returned_token_ids": columns}) as llm:
            assert_all_close(rewards(llm), own, 1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "one-key": {"num_key_value_heads": 1},
    "windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "bf16": {"dtype": torch.bfloat16},
    "bf16-sharded": {"dtype": torch.bfloat16, "shards": 3},
    "sharded": {"shards": 4, "num_hidden_layers": 3},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    theirs = Torch(tmp_path, 2, **VARIANTS[name])
    assert max(map(len, theirs.ids)) > 15
    with engine(tmp_path, pooler_config={"pooling_type": "STEP", "step_tag_id": theirs.tags[STEP]}) as llm:
        assert_all_close(rewards(llm), theirs.steps(), 1e-5)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_type": "STEP", "returned_token_ids": [2]}, "returned_token_ids"),
        ({"pooling_type": "STEP", "returned_token_ids": []}, "returned_token_ids"),
        ({"pooling_type": "ALL", "step_tag_id": 3}, "step_tag_id is for STEP"),
    ],
)
def test_poolings_that_are_refused(process_model: Torch, pooling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(process_model.directory, pooler_config=pooling, task="reward")


# Math-Shepherd: a language model whose logits of two tokens, at the ends of steps, are the rewards

TAG = "ки"
SHEPHERD = [f"the quick fox {TAG}\njumps over {TAG}", "naïve café", f"{TAG} {TAG} a stitch in time {TAG} saves nine"]


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Mistral", {"tie_word_embeddings": False, "sliding_window": None}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Gemma", {}),
    ],
)
def test_math_shepherd(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    words = [f"▁{word}" for word in (TAG, "+", "-")]
    vocab = write_words(tmp_path, architecture, words).get_vocab_size()
    make(architecture, "ForCausalLM", vocab, max_position_embeddings=LENGTH, **config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    good, bad, tag = tokenizer.convert_tokens_to_ids(["▁+", "▁-", f"▁{TAG}"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = []
    for text in SHEPHERD:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            scores = model(ids).logits[:, :, [good, bad]].softmax(-1)[:, :, 0]
        expected.append(scores[ids == tag])
    pooling = {"pooling_type": "STEP", "step_tag_id": tag, "returned_token_ids": [good, bad]}
    with engine(tmp_path, task="reward", override_pooler_config=pooling) as llm:
        ours = rewards(llm, SHEPHERD)
        assert_all_close([rows[:, 0] for rows in ours], expected, 1e-5)
        assert [rows.shape for rows in ours] == [(len(steps), 2) for steps in expected]
        assert sum(map(len, ours)) >= 4
        assert {name: spec.shape for name, spec in flatten(param_specs(llm.recipe)["head"]).items()} == {
            "0/linear/kernel": (36, 2)
        }
        program, specs = make_program(llm.recipe, llm.task), param_specs(llm.recipe)
        params = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, np.float32), specs)
        inputs = Inputs.of_shape(1, LENGTH, 4, lambda shape: jax.ShapeDtypeStruct(shape, np.int32))
        written = str(jax.make_jaxpr(program)(params, inputs))
        assert f"[{vocab},36]" in written
        assert f",{vocab}]" not in written  # never a logit a token of the vocabulary


def test_tokens_out_of_vocabulary(tmp_path: Path) -> None:
    vocab = write_words(tmp_path, "Llama").get_vocab_size()
    make("Llama", "ForCausalLM", vocab, max_position_embeddings=LENGTH).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"token id {vocab} is out of vocabulary"):
        engine(tmp_path, task="reward", pooler_config={"pooling_type": "STEP", "returned_token_ids": [3, vocab]})


# InternLM2

OWN_CODE = "raise SystemExit('code of the checkpoint was run')\n"


def test_internlm2(tmp_path: Path) -> None:
    sp = pytest.importorskip("tests.test_sentencepiece")
    model, places = sp.internlm2(tmp_path)
    vocab = max(places.values()) + 1
    config, state = write_internlm2(tmp_path, {"vocab_size": vocab, "max_position_embeddings": LENGTH}, np.float32)
    assert config["auto_map"] == INTERNLM2["auto_map"]
    for name in ("modeling_internlm2", "tokenization_internlm2"):
        (tmp_path / f"{name}.py").write_text(OWN_CODE)
    auto_map = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    edit_json(tmp_path / "tokenizer_config.json", auto_map=auto_map)
    encode = sp.reference(model, places | sp.special(model))
    texts = ["<|im_start|>user\nthe fox?<|im_end|>\n<|reward|>", "naïve café 東京", "fox<|reward|>"]
    for how in ({"trust_remote_code": True, "task": "reward"}, {}):
        with engine(tmp_path, **how) as llm:
            outputs = llm.reward(texts, use_tqdm=False)
        for text, output in zip(texts, outputs, strict=True):
            ids = [1, *encode(text)]
            assert output.prompt_token_ids == ids
            hidden = internlm2_reference(config, state, np.array(ids))["hidden"]
            assert_all_close([output.outputs.data], [hidden @ state["v_head.weight"].T.astype(np.float64)])
    assert not any("internlm2" in name and str(tmp_path) in str(getattr(module, "__file__", ""))
                   for name, module in sys.modules.items())  # fmt: skip


# Any language model: the last hidden states

PLAIN = [text for text in TEXTS if TEXTS.index(text) != 2]
BACKBONES = [
    ("Llama", "ForCausalLM", {"task": "reward"}),
    ("Llama", "Model", {"convert": "reward"}),
    ("Mistral", "Model", {"task": "reward"}),
    ("Qwen2", "ForCausalLM", {"runner": "pooling", "convert": "reward"}),
    ("Qwen3", "Model", {"task": "reward"}),
    ("Gemma", "ForCausalLM", {"task": "reward"}),
    ("Gemma2", "ForCausalLM", {"task": "reward"}),
    ("Gemma3Text", "ForCausalLM", {"task": "reward"}),
]


@pytest.mark.parametrize(("architecture", "kind", "how"), BACKBONES, ids=lambda value: str(value).replace(" ", ""))
def test_states(architecture: str, kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    vocab = write_words(tmp_path, architecture).get_vocab_size()
    model = make(architecture, kind, vocab, max_position_embeddings=128)
    model.save_pretrained(tmp_path)
    with engine(tmp_path, **how) as llm:
        assert llm.task == "token_classify"
        expected = [states(model, ids) for ids in token_ids(tmp_path, PLAIN)]
        ours = rewards(llm, PLAIN)
        assert_all_close(ours, expected)
        lengths = np.concatenate([np.linalg.norm(rows, axis=-1) for rows in ours])
        assert np.abs(lengths - 1).max() > 0.1  # raw
        encoded = llm.encode(PLAIN, use_tqdm=False)
        assert all(np.array_equal(one.outputs.data, other) for one, other in zip(encoded, ours, strict=True))
        with pytest.raises(ValueError, match="does not support the Scoring API"):
            llm.score("fox", "dog", use_tqdm=False)


def test_rewards_of_a_model_that_embeds(tmp_path: Path) -> None:
    vocab = write_words(tmp_path, "Llama").get_vocab_size()
    make("Llama", "Model", vocab, max_position_embeddings=LENGTH).save_pretrained(tmp_path)
    with engine(tmp_path) as llm, pytest.raises(ValueError, match="Reward API is not supported"):
        rewards(llm)


# Several tasks from one instance


@pytest.mark.parametrize("labels", [1, 3])
def test_a_classifier_gives_rewards(labels: int, tmp_path: Path) -> None:
    vocab = write_words(tmp_path, "Llama").get_vocab_size()
    model = make("Llama", "ForSequenceClassification", vocab, max_position_embeddings=128, num_labels=labels)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        logits = [model.score(states(model, ids)) for ids in token_ids(tmp_path, PLAIN)]
    final = torch.sigmoid if labels == 1 else lambda values: values.softmax(-1)
    with engine(tmp_path, task="reward") as llm:
        assert_all_close(rewards(llm, PLAIN), logits)
        first = llm.stats.compilations
        rewards(llm, PLAIN, pooling_params=[PoolingParams(softmax=bool(i % 2)) for i in range(len(PLAIN))])
        assert llm.stats.compilations == first
        classified = llm.classify(PLAIN, use_tqdm=False)
        assert llm.stats.compilations == 2 * first
        assert_close([output.outputs.probs for output in classified], [final(value[-1]) for value in logits])
        llm.classify(PLAIN, use_tqdm=False)
        assert_all_close(rewards(llm, PLAIN), logits)
        mixed = rewards(llm, PLAIN, pooling_params=[PoolingParams(), PoolingParams(softmax=True), PoolingParams()])
        assert_all_close(mixed, [logits[0], final(logits[1]), logits[2]])
        assert llm.stats.compilations == 2 * first


def test_the_difference_between_tasks_is_the_program_alone(process_model: Torch) -> None:
    """One set of weights, a program a task."""
    recipe = read_recipe(process_model.directory)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)
    assert set(params) == {"backbone", "head"}
    assert recipe.tasks == ("token_classify", "classify")
