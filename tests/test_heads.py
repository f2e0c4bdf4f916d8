"""Heads by hand: every module and every last step, in which order they come, and options mixed in one program."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool import read_recipe
from jaxpool.batch import Inputs
from jaxpool.converters import bert
from jaxpool.heads import (
    FINAL,
    Calibrate,
    Dense,
    LayerNorm,
    Normalize,
    Select,
    apply_chain,
    chain_specs,
    chain_width,
)
from jaxpool.models.family import Output
from jaxpool.params import ParamSpec, flatten
from jaxpool.program import make_program, param_specs
from jaxpool.tasks import CLASSIFY, EMBED, TOKEN_CLASSIFY, TOKEN_EMBED
from tests.tiny import random_weights, tiny_bert, tiny_classifier

X = jnp.array([[3.0, -4.0], [0.0, 0.0]])
KERNEL = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
BIAS = jnp.array([0.5, 0.0, -10.0])
LINEAR = {"linear": {"kernel": KERNEL, "bias": BIAS}}
SQUARE = {"linear": {"kernel": jnp.array([[0.0, 1.0], [1.0, 0.0]])}}

MODULES = {
    "dense": (Dense(2, 3, activation="identity"), LINEAR, [[3.5, -4, 0], [0.5, 0, -10]]),
    "dense without bias": (Dense(2, 2, bias=False, activation="identity"), SQUARE, [[-4, 3], [0, 0]]),
    "tanh is the default": (Dense(2, 2, bias=False), SQUARE, [[math.tanh(-4), math.tanh(3)], [0, 0]]),
    "relu": (Dense(2, 3, activation="relu"), LINEAR, [[3.5, 0, 0], [0.5, 0, 0]]),
    "residual": (
        Dense(2, 2, bias=False, activation="relu", residual=True),
        SQUARE,
        [[0 + 3, 3 - 4], [0, 0]],
    ),
    "residual with a projection": (
        Dense(2, 3, activation="relu", residual=True),
        LINEAR | {"residual": {"kernel": KERNEL}},
        [[3.5 + 3, 0 - 4, 0 + 10], [0.5, 0, 0]],
    ),
    "layer norm": (
        LayerNorm(2),
        {"norm": {"scale": jnp.array([2.0, 1.0]), "bias": jnp.array([0.0, 1.0])}},
        [[2 * 3.5 / math.sqrt(12.25 + 1e-5), 1 - 3.5 / math.sqrt(12.25 + 1e-5)], [0, 1]],
    ),
    "layer norm without bias, another epsilon": (
        LayerNorm(2, bias=False, epsilon=0.5),
        {"norm": {"scale": jnp.array([1.0, 1.0])}},
        [[3.5 / math.sqrt(12.75), -3.5 / math.sqrt(12.75)], [0, 0]],
    ),
    "normalize": (Normalize(), {}, [[0.6, -0.8], [0, 0]]),
    "select": (Select((1, 0, 1)), {}, [[-4, 3, -4], [0, 0, 0]]),
    "calibrate": (Calibrate(1.0, 0.5), {}, [[4, -10], [-2, -2]]),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    module, params, expected = MODULES[name]
    declared = {path: spec.shape for path, spec in flatten(module.param_specs()).items()}
    assert declared == {path: leaf.shape for path, leaf in flatten(params).items()}
    got = module(params, X)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def _gelu(x):
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


FINALS = {
    "normalize": [0.6, -0.8],
    "softmax": [1 / (1 + math.exp(-7)), 1 / (1 + math.exp(7))],
    "identity": [3, -4],
    "sigmoid": [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(4))],
    "tanh": [math.tanh(3), math.tanh(-4)],
    "relu": [3, 0],
    "gelu": [_gelu(3), _gelu(-4)],
    "silu": [3 / (1 + math.exp(-3)), -4 / (1 + math.exp(4))],
}


def test_every_last_step():
    assert set(FINALS) == set(FINAL)
    # 1 + erf(-2.8), as torch computes it too, keeps the last bits of 1: two of them, times half of 4.
    absolute = {"gelu": 2 * 2 * np.finfo(np.float32).epsneg}
    for name, expected in FINALS.items():
        np.testing.assert_allclose(FINAL[name](X)[0], expected, rtol=2e-6, atol=absolute.get(name, 0), err_msg=name)


def test_normalising_nothing_is_no_nan():
    np.testing.assert_array_equal(FINAL["normalize"](X)[1], [0, 0])


WIDTHS = [
    ((), 7, 7),
    ((Dense(7, 3), Normalize(), Dense(3, 2)), 7, 2),
    ((LayerNorm(7), Select((6, 0)), Calibrate()), 7, 2),
]
WRONG_WIDTHS = [
    ((Dense(7, 3), Dense(4, 2)), "here: Dense takes vectors of 4, but gets vectors of 3"),
    ((LayerNorm(6),), "here: LayerNorm takes vectors of 6, but gets vectors of 7"),
    ((Select((0, 7, -1)),), r"here: entries \[7, -1\] of vectors of 7"),
]


def test_widths_of_chains():
    for modules, width, expected in WIDTHS:
        assert chain_width(modules, width) == expected
    for modules, message in WRONG_WIDTHS:
        with pytest.raises(ValueError, match=message):
            chain_width(modules, 7, "here")


def test_a_chain_names_its_params_by_their_place():
    modules = (Normalize(), Dense(2, 3), Select((0,)), LayerNorm(1))
    specs = chain_specs(modules)
    assert set(specs) == {"1", "3"}
    params = random_weights(specs)
    by_hand = X
    for i, module in enumerate(modules):
        by_hand = module(params.get(str(i), {}), by_hand)
    np.testing.assert_array_equal(apply_chain(modules, params, X), by_hand)


# Programs: sequences of ids (1 … 9), each with its own options, two and three to a row.

LENGTHS = [[3, 4, 2], [5, 2, 0]]
OPTIONS = [(32, 1), (8, 1), (8, 0), (1, 1), (32, 0)]
"""(dimensions, activate) of the sequences, in their order."""


def _inputs(only=None):
    inputs = Inputs.of_shape(2, 16, 3, lambda shape: np.zeros(shape, np.int32))
    numbers = iter(range(5))
    for row, lengths in enumerate(LENGTHS):
        for place, length in enumerate(filter(None, lengths)):
            number = next(numbers)
            start = inputs.lengths[row].sum()
            inputs.lengths[row, place] = length
            inputs.ids[row, start : start + length] = np.arange(1, 1 + length) + number
            chosen = OPTIONS[number] if only is None else only
            inputs.dimensions[row, place], inputs.activate[row, place] = chosen
    return inputs


def _sequences(task, output):
    """The sequences' own parts of a program's output, in their order."""
    parts = []
    for row, lengths in enumerate(LENGTHS):
        starts = np.cumsum([0, *lengths])
        for place, length in enumerate(filter(None, lengths)):
            by_token = task in (TOKEN_EMBED, TOKEN_CLASSIFY)
            parts.append(output[row, starts[place] : starts[place] + length] if by_token else output[row, place])
    return parts


def _program(recipe, task):
    return jax.jit(make_program(recipe, task))


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _look_up(params, batch, config, *, capture=()):
    return Output(params["table"][batch.ids], {})


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """By task; their backbone is a table of vectors, which is all that a head sees of it."""
    embedder = read_recipe(tiny_bert(tmp_path_factory.mktemp("embedder")))
    classifier = read_recipe(tiny_classifier(tmp_path_factory.mktemp("classifier"), labels=3))
    table = {"table": ParamSpec((20, 32), (None, None))}
    family = replace(embedder.family, forward=_look_up, picks=False, param_specs=lambda config: table)
    return {task: replace(recipe, family=family) for recipe in (embedder, classifier) for task in recipe.tasks}


@pytest.mark.parametrize("task", [EMBED, TOKEN_EMBED, CLASSIFY, TOKEN_CLASSIFY])
def test_mixed_options_in_one_program_are_each_alone(recipes, task):
    recipe = recipes[task]
    params = random_weights(param_specs(recipe))
    program = _program(recipe, task)
    run = lambda only=None: _sequences(task, np.asarray(program(params, _inputs(only))))  # noqa: E731
    mixed, raw = run(), run((32, 0))
    for number, (dimensions, activate) in enumerate(OPTIONS):
        np.testing.assert_allclose(mixed[number], run((dimensions, activate))[number], atol=1e-6)
        expected = raw[number]
        if recipe.embeds:
            expected = np.where(np.arange(expected.shape[-1]) < dimensions, expected, 0)
        final = _unit if recipe.embeds else _softmax
        np.testing.assert_allclose(mixed[number], final(expected) if activate else expected, atol=1e-6)


def test_modules_then_cut_then_normalise_then_truncate(recipes):
    recipe = replace(recipes[EMBED], modules=(Normalize(), Dense(32, 6)), truncate_dim=3)
    params = random_weights(param_specs(recipe))
    head = params["head"]["1"]["linear"]
    plain = replace(recipes[EMBED], activate=False)
    pooled = np.asarray(_program(plain, EMBED)({"backbone": params["backbone"]}, _inputs((32, 0))))
    got = _program(recipe, EMBED)(params, _inputs((4, 1)))
    projected = np.tanh(_unit(pooled[0, 0]) @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(got[0, 0], _unit(projected[:4])[:3], atol=2e-6)


def test_calibration_comes_before_the_activation(recipes):
    recipe = replace(recipes[CLASSIFY], modules=(*recipes[CLASSIFY].modules, Calibrate(0.5, 2.0)))
    params = random_weights(param_specs(recipe))
    logits = np.asarray(_program(recipes[CLASSIFY], CLASSIFY)(params, _inputs((3, 0))))[0, 0]
    probs = np.asarray(_program(recipe, CLASSIFY)(params, _inputs((3, 1))))[0, 0]
    np.testing.assert_allclose(probs, _softmax((logits - 0.5) / 2), atol=1e-6)


def test_heads_are_float32_behind_a_bfloat16_backbone(recipes):
    recipe = recipes[EMBED]
    params = random_weights(param_specs(recipe))
    half = {"backbone": random_weights(param_specs(recipe)["backbone"], "bfloat16")}
    program = _program(recipe, EMBED)
    got, exact = np.asarray(program(half, _inputs((32, 1)))), np.asarray(program(params, _inputs((32, 1))))
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got[0], axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(got[0], exact[0], atol=0.05)


def test_a_classifiers_weights_are_found():
    assert {rule.target for rule in bert.TABLE.heads["classification"]} == {
        "0/linear/kernel", "0/linear/bias", "1/linear/kernel", "1/linear/bias"
    }  # fmt: skip
