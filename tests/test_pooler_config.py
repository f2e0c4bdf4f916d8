"""`PoolerConfig`: vLLM's fields, old and new, what they make of a recipe, and what does not go together."""

from dataclasses import fields, replace

import numpy as np
import pytest

from jaxpool import LLM, PoolerConfig, PoolingParams, read_recipe
from jaxpool.heads import Calibrate, Select
from tests.tiny import tiny_bert, tiny_classifier

SETTINGS = {"data_parallel_size": 1, "max_num_batched_tokens": 64}
TEXTS = ["the quick fox", "a dog"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=3)


@pytest.fixture(scope="module")
def recipes(embedder, classifier):
    embeds, classifies = read_recipe(embedder, {"is_matryoshka": True}), read_recipe(classifier)
    return {
        "embed": embeds,
        "token_embed": replace(embeds, task="token_embed"),
        "classify": classifies,
        "token_classify": read_recipe(classifier, task="token_classify"),
    }


def test_the_fields_of_every_version():
    newest = """
        task pooling_type seq_pooling_type tok_pooling_type use_activation enable_flash_late_interaction dimensions
        enable_chunked_processing max_embed_len logit_mean logit_sigma step_tag_id returned_token_ids
    """
    older = "normalize softmax activation logit_bias logit_scale"
    assert {f.name for f in fields(PoolerConfig)} == {*newest.split(), *older.split()}


CONTRADICTIONS = [
    ({"pooling_type": "CLS", "seq_pooling_type": "CLS"}, "Cannot set both `pooling_type` and `seq_pooling_type`"),
    ({"pooling_type": "ALL", "tok_pooling_type": "ALL"}, "Cannot set both `pooling_type` and `tok_pooling_type`"),
    ({"pooling_type": "BEST"}, r"pooling_type is 'BEST', expected one of \['CLS', 'LAST', 'MEAN'"),
    ({"seq_pooling_type": "ALL"}, "seq_pooling_type is 'ALL', expected one of"),
    ({"tok_pooling_type": "CLS"}, r"tok_pooling_type is 'CLS', expected one of \['ALL', 'STEP'\]"),
    ({"task": "generate"}, "Unsupported task: 'generate' Supported tasks: "),
    ({"logit_sigma": 0}, r"logit_sigma cannot be 0 \(division by zero\)"),
    ({"logit_scale": 0.0}, "logit_scale cannot be 0"),
    ({"logit_bias": 1.0, "logit_mean": 1.0}, "`logit_bias` and `logit_mean` are one setting"),
    ({"logit_scale": 2.0, "logit_sigma": 0.5}, "`logit_scale` and `logit_sigma` are one setting"),
    ({"normalize": True, "use_activation": False}, "`normalize`=True and `use_activation`=False contradict"),
    ({"softmax": True, "activation": False}, "`softmax`=True and `activation`=False contradict"),
    ({"use_activation": "yes"}, "`use_activation` is 'yes', expected True, False or None"),
    ({"max_embed_len": 0}, "max_embed_len is 0, expected at least 1"),
    ({"poling": "CLS", "also": 1}, r"PoolerConfig: unknown fields \['also', 'poling'\], expected of "),
]


@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS, ids=str)
def test_contradictions(values, message):
    with pytest.raises(ValueError, match=message):
        PoolerConfig.of(values)


def test_forms():
    config = PoolerConfig(pooling_type="CLS", normalize=True)
    assert PoolerConfig.of({"pooling_type": "CLS", "normalize": True}) == config
    assert PoolerConfig.of(config) is config
    assert PoolerConfig.of(None) == PoolerConfig.of({}) == PoolerConfig()
    for wrong in (3, "CLS", ["CLS"]):
        with pytest.raises(ValueError, match="pooler_config: expected a PoolerConfig or a dict of its fields, got"):
            PoolerConfig.of(wrong)


# what is configured, over a recipe of which task, and what comes of it
SEQUENCE = [("CLS", "cls"), ("LAST", "lasttoken"), ("MEAN", "mean"), ("MAX", "max"), ("mean", "mean"),
            ("MEAN_SQRT_LEN_TOKENS", "mean_sqrt_len_tokens"), ("WEIGHTEDMEAN", "weightedmean")]  # fmt: skip
APPLIED = [
    *(({field: name}, "embed", {"task": "embed", "pooling": (mode,)})
      for name, mode in SEQUENCE for field in ("pooling_type", "seq_pooling_type")),
    ({}, "embed", {"pooling": ("mean",), "activate": True, "dimensions": None}),
    ({"pooling_type": "ALL"}, "embed", {"task": "token_embed"}),
    ({"tok_pooling_type": "ALL"}, "classify", {"task": "token_classify", "step": False}),
    ({"seq_pooling_type": "LAST", "tok_pooling_type": "ALL"}, "embed",
     {"task": "token_embed", "pooling": ("lasttoken",)}),
    ({"pooling_type": "CLS"}, "token_embed", {"task": "embed", "pooling": ("cls",)}),
    ({"seq_pooling_type": "CLS"}, "token_embed", {"task": "token_embed", "pooling": ("cls",)}),
    ({"pooling_type": "STEP", "step_tag_id": 5}, "classify",
     {"task": "token_classify", "step": True, "step_tag_id": 5}),
    ({"dimensions": 8}, "embed", {"dimensions": 8}),
    *(({name: value}, "embed", {"activate": value}) for name in ("normalize", "use_activation")
      for value in (True, False)),
    *(({name: value}, "classify", {"activate": value}) for name in ("softmax", "activation", "use_activation")
      for value in (True, False)),
    ({"use_activation": True}, "token_classify", {"activate": True}),
    # Flags of the other kind of model have no say.
    ({"softmax": False}, "embed", {"activate": True}),
    ({"normalize": False}, "classify", {"activate": True}),
    ({"enable_chunked_processing": True, "max_embed_len": 640}, "embed", {"chunked": True, "max_embed_len": 640}),
    ({"enable_chunked_processing": False, "enable_flash_late_interaction": False}, "embed", {"chunked": False}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "task", "expected"), APPLIED, ids=str)
def test_applied(recipes, values, task, expected):
    recipe = PoolerConfig(**values).apply(recipes[task])
    assert {name: getattr(recipe, name) for name in expected} == expected


CALIBRATIONS = [
    ({"logit_mean": 0.5, "logit_sigma": 4.0}, Calibrate(0.5, 4.0)),
    ({"logit_bias": 0.5, "logit_scale": 0.25}, Calibrate(0.5, 4.0)),
    ({"logit_mean": 0.5}, Calibrate(0.5, 1.0)),
    ({"logit_sigma": 4.0}, Calibrate(0.0, 4.0)),
    ({"logit_mean": 0.0}, Calibrate(0.0, 1.0)),
]


@pytest.mark.parametrize(("values", "module"), CALIBRATIONS, ids=str)
def test_calibration(recipes, values, module):
    own = recipes["classify"].modules
    assert PoolerConfig(**values).apply(recipes["classify"]).modules == (*own, module)


def test_some_of_the_classes(recipes):
    for ids, final in (([2, 0], "softmax"), ([1], "sigmoid")):
        recipe = PoolerConfig(returned_token_ids=ids).apply(recipes["classify"])
        assert (recipe.modules[-1], recipe.final, recipe.vector_size) == (Select(tuple(ids)), final, len(ids))


MISFITS = [
    ({"logit_mean": 0.5}, "embed", "logit_mean and logit_sigma are for classifiers"),
    ({"step_tag_id": 5}, "classify", "step_tag_id is for STEP pooling"),
    ({"pooling_type": "STEP"}, "embed", "STEP pooling is for reward models"),
    ({"returned_token_ids": [0]}, "embed", "returned_token_ids is for classifiers and reward models"),
    ({"returned_token_ids": []}, "classify", r"returned_token_ids is \[\], expected at least one"),
    ({"returned_token_ids": [1, 3]}, "classify", r"entries \[3\] of vectors of 3"),
    ({"dimensions": 2}, "classify", "gives no embeddings"),
    ({"dimensions": 33}, "embed", r"only supports dimensions in range \[1, 32\], got 33"),
    ({"enable_chunked_processing": True}, "classify", "is for embeddings of whole texts"),
    ({"enable_chunked_processing": True}, "token_embed", "is for embeddings of whole texts"),
    ({"max_embed_len": 640}, "embed", "max_embed_len needs enable_chunked_processing"),
    (
        {"enable_chunked_processing": True, "max_embed_len": 63},
        "embed",
        "max_embed_len is 63, less than the model's 64",
    ),
]


@pytest.mark.parametrize(("values", "task", "message"), MISFITS, ids=str)
def test_what_does_not_fit_the_model(recipes, values, task, message):
    with pytest.raises(ValueError, match=message):
        PoolerConfig(**values).apply(recipes[task], "tiny")


def test_precedence(tmp_path):
    plain = read_recipe(tiny_bert(tmp_path / "plain", sentence_transformer=False))
    saved = read_recipe(tiny_bert(tmp_path / "saved", pooling="mean", normalize=False))
    chosen = PoolerConfig(seq_pooling_type="LAST", use_activation=True)
    assert (plain.pooling, plain.activate) == (("cls",), True)
    assert (saved.pooling, saved.activate) == (("mean",), False)
    for recipe in (chosen.apply(plain), chosen.apply(saved)):
        assert (recipe.pooling, recipe.activate) == (("lasttoken",), True)


def test_one_task(embedder):
    with pytest.raises(ValueError, match=r"You cannot overwrite task='embed' with pooler_config.task='classify'!"):
        LLM(embedder, task="embed", pooler_config={"task": "classify"})
    with pytest.raises(ValueError, match="pooler_config and override_pooler_config are one setting"):
        LLM(embedder, pooler_config={"task": "embed"}, override_pooler_config={"task": "embed"})
    with LLM(embedder, task="embedding", pooler_config=PoolerConfig(task="embed"), **SETTINGS) as llm:
        assert llm.task == "embed"


def test_a_classifiers_activation(classifier):
    answers = {}
    for flag in (True, False):
        with LLM(classifier, pooler_config=PoolerConfig(use_activation=flag), **SETTINGS) as llm:
            answers[flag] = np.array([o.outputs.probs for o in llm.classify(TEXTS, use_tqdm=False)])
            other = PoolingParams(activation=not flag)
            switched = [o.outputs.probs for o in llm.classify(TEXTS, pooling_params=other, use_tqdm=False)]
        answers[flag, "switched"] = np.array(switched)
    e = np.exp(answers[False])
    np.testing.assert_allclose(answers[True], e / e.sum(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(answers[True, "switched"], answers[False], atol=1e-6)
    np.testing.assert_allclose(answers[False, "switched"], answers[True], atol=1e-6)


def test_an_embedders_activation(embedder):
    with LLM(embedder, override_pooler_config={"normalize": False}, **SETTINGS) as llm:
        raw = llm.embed_array(TEXTS)
        unit = llm.embed_array(TEXTS, pooling_params=PoolingParams(normalize=True))
    assert (np.abs(np.linalg.norm(raw, axis=1) - 1) > 1e-3).all()
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
