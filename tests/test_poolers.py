"""Poolers against matrices written out by hand: two sequences in one row, one in the next, padding full of NaN."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool.attention import AttentionMask
from jaxpool.batch import Inputs, by_token, positions_after_padding_id, unfold
from jaxpool.heads import Dense, LayerNorm, Normalize, apply_chain, chain_specs
from jaxpool.params import random_params
from jaxpool.poolers import POOLERS, pool

NAN = float("nan")
# Row 0: sequences of 2 and 3 tokens and one pad; row 1: a sequence of 4 and two pads. D = 2.
HIDDEN = jnp.array(
    [
        [[1, 2], [3, 4], [5, -6], [7, 8], [9, 1], [NAN, NAN]],
        [[2, 0], [4, 0], [6, 0], [-8, 3], [NAN, NAN], [NAN, NAN]],
    ],
    jnp.float32,
)
LENGTHS = np.array([[2, 3], [4, 0]], np.int32)
USED = LENGTHS > 0


def batch(skip=((0, 0), (0, 0))):
    return unfold(inputs(jnp.zeros((2, 6), jnp.int32), jnp.asarray(skip, jnp.int32)))


def inputs(ids, skip):
    nothing = jnp.zeros((2, 2), jnp.int32)
    return Inputs(ids, jnp.asarray(LENGTHS), skip, nothing, nothing, nothing, nothing)


EXPECTED = {
    "cls": [[1, 2], [5, -6], [2, 0]],
    "lasttoken": [[3, 4], [9, 1], [-8, 3]],
    "mean": [[2, 3], [7, 1], [1, 0.75]],
    "max": [[3, 4], [9, 8], [6, 3]],
    "mean_sqrt_len_tokens": [
        [4 / 2**0.5, 6 / 2**0.5],
        [21 / 3**0.5, 3 / 3**0.5],
        [4 / 2, 3 / 2],
    ],
    "weightedmean": [
        [(1 + 6) / 3, (2 + 8) / 3],
        [(5 + 14 + 27) / 6, (-6 + 16 + 3) / 6],
        [(2 + 8 + 18 - 32) / 10, 12 / 10],
    ],
}


@pytest.mark.parametrize("mode", POOLERS)
def test_by_hand(mode):
    pooled = np.asarray(POOLERS[mode](HIDDEN, batch()))[USED]
    np.testing.assert_allclose(pooled, EXPECTED[mode], rtol=1e-6)


WITHOUT_FIRST = {
    "cls": [[3, 4], [7, 8], [4, 0]],
    "lasttoken": [[3, 4], [9, 1], [-8, 3]],
    "mean": [[3, 4], [8, 4.5], [2 / 3, 1]],
    "max": [[3, 4], [9, 8], [6, 3]],
    "weightedmean": [[3, 4], [(14 + 27) / 5, 19 / 5], [(8 + 18 - 32) / 9, 12 / 9]],
}


@pytest.mark.parametrize("mode", WITHOUT_FIRST)
def test_a_skipped_prompt_by_hand(mode):
    pooled = np.asarray(POOLERS[mode](HIDDEN, batch(skip=((1, 1), (1, 0)))))[USED]
    np.testing.assert_allclose(pooled, WITHOUT_FIRST[mode], rtol=1e-6)


def test_several_are_concatenated():
    pooled = np.asarray(pool(HIDDEN, batch(), ("cls", "mean")))[USED]
    np.testing.assert_allclose(pooled, np.concatenate([EXPECTED["cls"], EXPECTED["mean"]], -1), rtol=1e-6)


def test_segments_and_positions():
    b = batch()
    assert b.segments.tolist() == [[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert b.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]
    assert b.starts[:, 0].tolist() == [0, 0]
    assert int(b.starts[0, 1]) == 2


def test_values_of_sequences_by_token():
    values = jnp.array([[10, 20], [30, 40]])
    assert by_token(batch(), values).tolist() == [[10, 10, 20, 20, 20, 10], [30] * 6]


def test_positions_that_skip_the_padding_id():
    ids = jnp.array([[7, 1, 7, 7, 7, 0], [1, 7, 1, 7, 0, 0]], jnp.int32)
    b = unfold(inputs(ids, jnp.zeros((2, 2), jnp.int32)))
    positions = positions_after_padding_id(b, 1)
    assert positions[0, :5].tolist() == [2, 1, 2, 3, 4]
    assert positions[1, :4].tolist() == [1, 2, 1, 3]


SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 0]])
MASKS = {
    "full": (dict(), ["110000", "110000", "001110", "001110", "001110", "000000"]),
    "causal": (dict(causal=True), ["100000", "110000", "001000", "001100", "001110", "000000"]),
    "window": (dict(window=(1, 0)), ["100000", "110000", "001000", "001100", "000110", "000000"]),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_by_hand(name):
    options, rows = MASKS[name]
    expected = [[c == "1" for c in row] for row in rows]
    assert AttentionMask(SEGMENTS, **options).dense()[0].tolist() == expected


def test_a_chain_of_heads():
    modules = (Dense(2, 3, activation="relu"), LayerNorm(3), Dense(3, 3, bias=False, activation="tanh", residual=True))
    params = random_params(chain_specs((*modules, Normalize())), scale=1.0)
    x = np.array([[1.0, -2.0]], np.float32)
    y = np.maximum(x @ params["0"]["linear"]["kernel"], 0)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = np.tanh(y @ params["2"]["linear"]["kernel"]) + y
    y /= np.linalg.norm(y)
    np.testing.assert_allclose(apply_chain((*modules, Normalize()), params, jnp.asarray(x)), y, rtol=1e-5)


def test_normalising_zero_stays_finite():
    assert np.asarray(Normalize()({}, jnp.zeros((1, 3)))).tolist() == [[0, 0, 0]]
