"""Options of single requests: Matryoshka dimensions and normalisation, mixed in one call and one program."""

import numpy as np
import pytest

from jaxpool import LLM, PoolerConfig, PoolingParams, read_recipe
from tests.tiny import tiny_bert, tiny_classifier

TEXTS = ["the quick fox", "a dog", "seven small birds sing", "the quick fox"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory, hf_overrides={"matryoshka_dimensions": [8, 16, 32]}) as engine:
        yield engine


@pytest.fixture(scope="module")
def raw(directory):
    with LLM(directory, pooler_config={"normalize": False}) as engine:
        return engine.embed_array(TEXTS)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


MIXTURE = [
    PoolingParams(dimensions=8),
    PoolingParams(normalize=False),
    PoolingParams(dimensions=16, use_activation=False),
    PoolingParams(),
]


def test_a_mixture_in_one_call(llm, raw):
    outputs = llm.encode(TEXTS, MIXTURE, use_tqdm=False)
    expected = [unit(raw[0][:8]), raw[1], raw[2][:16], unit(raw[3])]
    for output, vector in zip(outputs, expected, strict=True):
        assert output.outputs.data.shape == vector.shape
        np.testing.assert_allclose(output.outputs.data, vector, atol=1e-6)


def test_every_mixture_is_one_program(llm):
    llm.warmup()
    compiled = llm.stats.compilations
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = [MIXTURE[i] for i in rng.integers(0, 4, 4)]
        llm.embed(TEXTS, pooling_params=chosen, use_tqdm=False)
    assert llm.stats.compilations == compiled


def test_one_for_all(llm, raw):
    outputs = llm.embed(TEXTS, pooling_params=PoolingParams(dimensions=8), use_tqdm=False)
    np.testing.assert_allclose([o.outputs.embedding for o in outputs], unit(raw[:, :8]), atol=1e-6)


def test_by_token(directory):
    settings = {"pooler_config": {"pooling_type": "ALL", "normalize": False}, "hf_overrides": {"is_matryoshka": True}}
    with LLM(directory, **settings) as every:
        whole = every.encode(TEXTS[:2], use_tqdm=False)
        mixed = every.encode(TEXTS[:2], [PoolingParams(dimensions=5, normalize=True), PoolingParams()], use_tqdm=False)
    np.testing.assert_allclose(mixed[0].outputs.data, unit(whole[0].outputs.data[:, :5]), atol=1e-6)
    np.testing.assert_allclose(mixed[1].outputs.data, whole[1].outputs.data, atol=1e-6)


def test_a_model_that_does_not_say_so_refuses(directory):
    with LLM(directory) as plain:
        with pytest.raises(ValueError, match=r"does not support matryoshka.*dimensions must be unset \(received dim"):
            plain.embed("a dog", pooling_params=PoolingParams(dimensions=8), use_tqdm=False)
        (out,) = plain.embed("a dog", pooling_params=PoolingParams(normalize=False), use_tqdm=False)
        assert len(out.outputs.embedding) == 32


@pytest.mark.parametrize(
    ("dimensions", "message"), [(0, "greater than 0"), (-1, "greater than 0"), (5, r"\[8, 16, 32\]")]
)
def test_wrong_dimensions(llm, dimensions, message):
    with pytest.raises(ValueError, match=message):
        llm.embed("a dog", pooling_params=PoolingParams(dimensions=dimensions), use_tqdm=False)


def test_dimensions_beyond_the_vector(directory):
    with (
        LLM(directory, hf_overrides={"is_matryoshka": True}) as llm,
        pytest.raises(ValueError, match=r"range \[1, 32\]"),
    ):
        llm.embed("a dog", pooling_params=PoolingParams(dimensions=33), use_tqdm=False)


def test_not_one_a_prompt(llm):
    with pytest.raises(ValueError, match=r"lengths of prompts \(4\) and params \(3\) must be the same"):
        llm.encode(TEXTS, MIXTURE[:3], use_tqdm=False)
    with pytest.raises(ValueError, match="pooling_params: expected"):
        llm.encode(TEXTS, {"dimensions": 8}, use_tqdm=False)


@pytest.mark.parametrize(
    "flags",
    [
        {"normalize": True, "use_activation": False},
        {"softmax": True, "use_activation": False},
        {"activation": False, "use_activation": True},
        {"softmax": True, "activation": False},
    ],
    ids=str,
)
def test_contradictions(flags):
    one, other = (f"`{name}`={value}" for name, value in flags.items())
    with pytest.raises(ValueError, match=f"PoolingParams: {one} and {other} contradict each other"):
        PoolingParams(**flags)
    PoolingParams(**dict.fromkeys(flags, True))
    with pytest.raises(ValueError, match=f"`{next(iter(flags))}` is 1, expected True, False or None"):
        PoolingParams(**{next(iter(flags)): 1})


# What each task takes: without an engine.


@pytest.fixture(scope="module")
def recipes(directory, tmp_path_factory):
    classifier = tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=3)
    embeds, classifies = read_recipe(directory, {"is_matryoshka": True}), read_recipe(classifier)
    return {"embed": embeds, "token_embed": embeds, "classify": classifies, "token_classify": classifies}


EMBEDDING, CLASSIFIER = ("embed", "token_embed"), ("classify", "token_classify")
# parameters, the tasks that take them, and what is then resolved
VALID = [
    ({}, EMBEDDING, {"dimensions": 32, "activate": True}),
    ({}, CLASSIFIER, {"dimensions": 3, "activate": True}),
    ({"dimensions": 5}, EMBEDDING, {"dimensions": 5}),
    ({"normalize": False}, EMBEDDING, {"activate": False}),
    ({"use_activation": False}, (*EMBEDDING, *CLASSIFIER), {"activate": False}),
    ({"softmax": False}, CLASSIFIER, {"activate": False}),
    ({"activation": False}, CLASSIFIER, {"activate": False}),
    ({"adapter": "none"}, (*EMBEDDING, *CLASSIFIER), {"adapter": 0}),
    ({"use_cross_encoder": True, "additional_data": 3}, (*EMBEDDING, *CLASSIFIER), {"step_tag_id": None}),
]
INVALID = [
    (("softmax",), EMBEDDING),
    (("activation",), EMBEDDING),
    (("normalize",), CLASSIFIER),
    (("dimensions",), CLASSIFIER),
    (("dimensions", "normalize"), CLASSIFIER),
    (("step_tag_id",), (*EMBEDDING, *CLASSIFIER)),
    (("returned_token_ids",), (*EMBEDDING, *CLASSIFIER)),
]
VALUES = {"dimensions": 8, "step_tag_id": 1, "returned_token_ids": [1]}


@pytest.mark.parametrize(("values", "tasks", "expected"), VALID, ids=str)
def test_parameters_of_tasks(recipes, values, tasks, expected):
    for task in tasks:
        options = PoolingParams(**values).resolve(recipes[task], "tiny", task)
        assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(("names", "tasks"), INVALID, ids=str)
def test_parameters_of_other_tasks(recipes, names, tasks):
    params = PoolingParams(**{name: VALUES.get(name, True) for name in names})
    for task in tasks:
        message = rf"Task '{task}' only supports \[.*\] parameters, does not support \['{names[0]}'"
        with pytest.raises(ValueError, match=message):
            params.resolve(recipes[task], "tiny", task)


def test_parameters_of_steps(recipes):
    steps = PoolerConfig(pooling_type="STEP", step_tag_id=4).apply(recipes["classify"])
    tag = lambda task=None, **values: PoolingParams(**values).resolve(steps, "tiny", task).step_tag_id  # noqa: E731
    assert (tag(), tag(step_tag_id=7), tag("classify")) == (4, 7, None)
    with pytest.raises(ValueError, match="Task 'classify' only supports"):
        tag("classify", step_tag_id=7)
    with pytest.raises(ValueError, match="returned_token_ids .* belongs to the instance"):
        tag(returned_token_ids=[1])


def _says_so(config):
    config.is_matryoshka = True
    return config


# What config.json says, the dimensions asked for, and the words of vLLM's old and of its new versions.
MATRYOSHKA = [
    (None, 8, 'Model "tiny" does not support matryoshka representation, changing output dimensions will lead to poor'),
    (None, 8, r"does not support Matryoshka embeddings; dimensions must be unset \(received dimensions=8\)"),
    ({"is_matryoshka": False}, 8, "does not support matryoshka"),
    ({"matryoshka_dimensions": [16, 8]}, 9, r'Model "tiny" only supports \[8, 16\] matryoshka dimensions, use other'),
    ({"matryoshka_dimensions": [16, 8]}, 9, "Matryoshka dimensions; got 9"),
    ({"is_matryoshka": True}, 33, r"only supports dimensions in range \[1, 32\], got 33"),
    (_says_so, 33, r"only supports dimensions in range \[1, 32\], got 33"),
    (_says_so, 0, "Dimensions must be greater than 0"),
]


@pytest.mark.parametrize(("overrides", "dimensions", "message"), MATRYOSHKA)
def test_matryoshkas_words(directory, overrides, dimensions, message):
    recipe = read_recipe(directory, overrides)
    with pytest.raises(ValueError, match=message):
        PoolingParams(dimensions=dimensions).resolve(recipe, "tiny")
    with pytest.raises(ValueError, match=message):
        PoolerConfig(dimensions=dimensions).apply(recipe, "tiny")


@pytest.mark.parametrize("overrides", [{"is_matryoshka": True}, {"matryoshka_dimensions": [8, 16]}, _says_so])
def test_matryoshkas_by_override(directory, overrides):
    recipe = PoolerConfig(dimensions=16).apply(read_recipe(directory, overrides))
    assert PoolingParams(dimensions=8).resolve(recipe, "tiny").dimensions == 8
    assert PoolingParams().resolve(recipe, "tiny").dimensions == 16


def test_the_instances_dimensions(directory, raw):
    settings = {"pooler_config": {"dimensions": 16}, "hf_overrides": _says_so, "data_parallel_size": 1}
    with LLM(directory, **settings) as llm:
        np.testing.assert_allclose(llm.embed_array(TEXTS), unit(raw[:, :16]), atol=1e-6)
        own = llm.embed_array(TEXTS, pooling_params=PoolingParams(dimensions=8))
    np.testing.assert_allclose(own, unit(raw[:, :8]), atol=1e-6)
