"""Attention: the TPU kernel's arithmetic (interpreted) against the einsums, and which backend a program gets."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jaxpool import log
from jaxpool.attention import BACKENDS, AttentionMask, Options, attention, blocked, choose, cudnn, plain, splash

TOKENS = 384  # three blocks of 128: the kernel itself takes shorter rows than are worth its while
LONG = 512
# Ends of the sequences in each row: packed with padding behind them, and nothing but padding.
ROWS = ((100, 107, 300, 370), ())


def segments_of(rows, tokens=TOKENS):
    out = np.zeros((len(rows), tokens), np.int32)
    for row, ends in zip(out, rows, strict=True):
        for number, (start, end) in enumerate(zip((0, *ends), ends, strict=False), 1):
            row[start:end] = number
    return out


def case(*, heads=2, kv_heads=2, width=16, rows=ROWS, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(len(rows), TOKENS, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("mask", "sizes", "options"),
    [
        ({}, {}, {}),
        ({"causal": True}, {"heads": 4, "kv_heads": 1, "width": 24}, {}),
        ({"window": (64, 64)}, {}, {"scale": 0.7}),
        ({"window": (5, 200)}, {"heads": 6, "kv_heads": 2}, {"soft_cap": 0.5}),
        ({"causal": True, "window": (127, 0)}, {}, {}),
    ],
    ids=str,
)
def test_splash_computes_what_einsum_does(mask, sizes, options):
    q, k, v = case(**sizes)
    segments = segments_of(ROWS)
    mask, options = (
        AttentionMask(segments, **mask),
        Options(**{"scale": q.shape[-1] ** -0.5, "soft_cap": None} | options),
    )
    found = splash.attend(q, k, v, mask, None, options, interpret=True)
    wanted = plain.attend(q, k, v, mask, None, options)
    assert found.dtype == wanted.dtype == jnp.float32
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()  # padding too
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=1e-5)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("scores", [2**18, 2**13])
@pytest.mark.parametrize(
    ("mask", "sizes", "options"),
    [
        ({}, {}, {}),
        ({"causal": True}, {"heads": 4, "kv_heads": 2, "width": 24}, {"scale": 0.7}),
        ({"window": (64, 3)}, {"heads": 6, "kv_heads": 2}, {"soft_cap": 0.5}),
        ({"causal": True, "window": (40, 0)}, {"heads": 2, "kv_heads": 1}, {}),
        ({"window": (10_000, 10_000)}, {}, {}),
    ],
    ids=str,
)
def test_blocked_computes_what_einsum_does(mask, sizes, options, scores, alone, monkeypatch):
    monkeypatch.setattr(blocked, "CPU_SCORES", scores)
    monkeypatch.setattr(blocked, "_on_one_cpu", lambda: alone)
    q, k, v = case(**sizes)
    mask = AttentionMask(jnp.asarray(segments_of(ROWS)), **mask)
    options = Options(**{"scale": q.shape[-1] ** -0.5, "soft_cap": None} | options)
    wanted = plain.attend(q, k, v, mask, None, options)
    found = blocked.attend(q, k, v, mask, None, options)
    assert found.dtype == wanted.dtype == jnp.float32
    assert np.isfinite(found).all()  # padding too
    real = np.asarray(mask.segments) > 0
    # A weight is as exact as its score: both ways round scores of up to `largest` to float32.
    largest = options.scale * float(jnp.linalg.norm(q, axis=-1).max() * jnp.linalg.norm(k, axis=-1).max())
    rounding = max(1e-6, 2 * largest * float(np.finfo(np.float32).epsneg))
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (64, 64)}], ids=str)
def test_blocked_writes_out_no_square(mask, alone, monkeypatch):
    monkeypatch.setattr(blocked, "_on_one_cpu", lambda: alone)

    def program(q, segments):
        return attention(q, q, q, AttentionMask(segments, **mask))

    tokens = 2048
    traced = jax.make_jaxpr(program)(jnp.zeros((1, tokens, 2, 16)), jnp.zeros((1, tokens), jnp.int32))
    assert f"{tokens},{tokens}" not in str(traced)


def test_splash_in_bfloat16():
    q, k, v = case(dtype=jnp.bfloat16)
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)
    found = splash.attend(q, k, v, mask, None, options, interpret=True)
    wanted = plain.attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask, None, options)
    real = np.asarray(mask.segments) > 0
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=0.02)


def test_splash_under_a_mesh_runs_row_by_row():
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    q, k, v = case()
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)
    with jax.set_mesh(mesh):
        # The segments are handed in: a dataclass is no argument of a jitted function.
        compute = jax.jit(
            lambda q, k, v, s: splash.attend(q, k, v, AttentionMask(s), None, options, interpret=True)
        )  # fmt: skip
        found = compute(q, k, v, mask.segments)
    np.testing.assert_allclose(found, splash.attend(q, k, v, mask, None, options, interpret=True), atol=1e-6)


def on(platform, shape=(4, 1)):
    """A mesh of `platform`'s devices, which need not be here."""
    device = AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    return use_abstract_mesh(AbstractMesh(shape, ("data", "model"), abstract_device=device))


def pick(backend="auto", *, tokens=LONG, dtype="float32", bias=None, soft_cap=None, **mask):
    q = jax.ShapeDtypeStruct((4, tokens, 2, 16), dtype)
    return choose(backend, q, q, AttentionMask(segments_of(ROWS[:1]), **mask), bias, Options(1.0, soft_cap))


def test_one_cpu_is_known_by_its_mesh():
    with on("cpu", (1, 1)):
        assert blocked._on_one_cpu()
    for platform, shape in (("cpu", (2, 1)), ("gpu", (1, 1))):
        with on(platform, shape):
            assert not blocked._on_one_cpu()
    assert not blocked._on_one_cpu()  # no mesh


def test_auto_goes_by_the_platform_of_the_mesh(caplog, monkeypatch):
    monkeypatch.setattr(log, "_said", set())
    with caplog.at_level(logging.INFO, "jaxpool"):
        assert pick() == "blocked"  # no mesh
        with on("cpu"):
            assert pick() == "blocked"
            assert pick(tokens=LONG - 1) == pick(bias=0) == "einsum"
        with on("tpu"):
            assert pick() == pick(tokens=640, dtype="bfloat16", window=(3, 3)) == "splash"
        assert not [said for said in caplog.messages if "splash" in said]
        caplog.clear()
        with on("tpu"):
            assert pick(tokens=384) == pick(tokens=384) == pick(bias=0) == "einsum"
            assert pick(tokens=520) == "blocked"
    assert caplog.messages == [
        "attention: einsum, since splash cannot: rows have 384 tokens, and it takes multiples of 128 from 512 on",
        "attention: einsum, since splash cannot: scores have a bias",
        "attention: blocked, since splash cannot: rows have 520 tokens, and it takes multiples of 128 from 512 on",
    ]


def test_cudnn_takes_rows_of_one_sequence(monkeypatch):
    one, several = np.full((1, 1), 300), np.full((1, 8), 30)
    gpu = partial(pick, dtype="bfloat16", lengths=one)
    with on("gpu"):
        assert gpu() == "blocked"  # no GPU here to ask for its age
        monkeypatch.setattr(cudnn, "_compute_capability", lambda: (9, 0))
        assert gpu() == gpu(causal=True) == gpu(causal=True, window=(5, 0)) == "cudnn"
        assert gpu(window=(5, 5)) == gpu(lengths=several) == gpu(lengths=None) == "blocked"
        assert gpu(dtype="float32") == gpu(soft_cap=50.0) == "blocked"
        assert gpu(bias=0) == "einsum"
        monkeypatch.setattr(cudnn, "_compute_capability", lambda: (7, 5))
        assert gpu() == "blocked"


def test_a_backend_by_name_says_why_not():
    q, k, v = case(rows=ROWS[:1])
    mask = AttentionMask(segments_of(ROWS[:1]))
    np.testing.assert_array_equal(attention(q, k, v, mask), attention(q, k, v, mask, backend="einsum"))
    with pytest.raises(ValueError, match="'splash' cannot: it runs on tpu, and this program is for no mesh"):
        attention(q, k, v, mask, backend="splash")
    with on("tpu"), pytest.raises(ValueError, match="'splash' cannot: rows have 520 tokens"):
        pick("splash", tokens=520)
    with on("gpu"), pytest.raises(ValueError, match="'cudnn' cannot: dtype is float32"):
        pick("cudnn")
    with pytest.raises(
        ValueError,
        match=r"'flash' is not known, expected one of \['auto', 'splash', 'cudnn', 'native', 'blocked', 'einsum'\]",
    ):
        attention(q, k, v, mask, backend="flash")
    assert BACKENDS["einsum"].platform is None
