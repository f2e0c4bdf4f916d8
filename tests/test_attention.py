"""Attention: the chips' kernels' arithmetic (interpreted) against the einsums, and which backend a program gets."""

import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jaxpool import log
from jaxpool.attention import BACKENDS, AttentionMask, Options, attention, blocked, choose, flash, nvidia, plain, splash

TOKENS = 384  # three blocks of 128: the kernel itself takes shorter rows than are worth its while
LONG = 512
# Ends of the sequences in each row: packed with padding behind them, and nothing but padding.
ROWS = ((100, 107, 300, 370), ())
KERNELS = (splash, flash)
PALLAS = pytest.mark.parametrize("kernel", KERNELS, ids=["splash", "flash"])


def segments_of(rows, tokens=TOKENS):
    out = np.zeros((len(rows), tokens), np.int32)
    for row, ends in zip(out, rows, strict=True):
        for number, (start, end) in enumerate(zip((0, *ends), ends, strict=False), 1):
            row[start:end] = number
    return out


def case(*, heads=2, kv_heads=2, width=16, rows=ROWS, dtype="float32", seed=0, tokens=TOKENS):
    rng = np.random.default_rng(seed)
    shapes = [(len(rows), tokens, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


@PALLAS
@pytest.mark.parametrize(
    ("mask", "sizes", "options"),
    [
        ({}, {}, {}),
        ({"causal": True}, {"heads": 4, "kv_heads": 1, "width": 24}, {}),
        ({"window": (64, 64)}, {}, {"scale": 0.7}),
        ({"window": (5, 200)}, {"heads": 6, "kv_heads": 2}, {"soft_cap": 0.5}),
        ({"causal": True, "window": (127, 0)}, {}, {}),
        ({}, {"width": 200}, {}),
    ],
    ids=str,
)
def test_a_kernel_computes_what_einsum_does(kernel, mask, sizes, options):
    q, k, v = case(**sizes)
    segments = segments_of(ROWS)
    mask, options = (
        AttentionMask(segments, **mask),
        Options(**{"scale": q.shape[-1] ** -0.5, "soft_cap": None} | options),
    )
    found = kernel.attend(q, k, v, mask, None, options, interpret=True)
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


@pytest.mark.parametrize("backend", ["blocked", "blocked on a CPU", "splash", "flash"])
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (64, 3)}], ids=str)
def test_rows_of_any_length(mask, backend, monkeypatch):
    """A picture's 577 patches: no divisor makes blocks of them."""
    tokens = 577
    monkeypatch.setattr(blocked, "_on_one_cpu", lambda: backend == "blocked on a CPU")
    segments = jnp.asarray(segments_of(((100, 300, 570), (tokens,)), tokens))
    q, k, v = case(heads=4, rows=segments, tokens=tokens)
    mask, options = AttentionMask(segments, **mask), Options(0.25, None)
    attend = {"splash": splash.attend, "flash": flash.attend}.get(backend)
    found = (
        attend(q, k, v, mask, None, options, interpret=True) if attend else blocked.attend(q, k, v, mask, None, options)
    )
    assert found.shape == q.shape
    wanted, real = plain.attend(q, k, v, mask, None, options), segments > 0
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=1e-5)


def test_blocks_are_even():
    full, wide = AttentionMask(np.ones((1, 577))), AttentionMask(np.ones((1, 8192)), window=(64, 64))
    assert blocked._block(full, 577, 1) == 289  # of two; no divisor of 577 but 1 is shorter than a row
    assert blocked._block(full, 577, 4096) == 1
    assert blocked._block(wide, 8192, 1) == 32


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (64, 64)}], ids=str)
def test_blocked_writes_out_no_square(mask, alone, monkeypatch):
    monkeypatch.setattr(blocked, "_on_one_cpu", lambda: alone)

    def program(q, segments):
        return attention(q, q, q, AttentionMask(segments, **mask))

    tokens = 2048
    traced = jax.make_jaxpr(program)(jnp.zeros((1, tokens, 2, 16)), jnp.zeros((1, tokens), jnp.int32))
    assert f"{tokens},{tokens}" not in str(traced)


def test_flash_where_numbers_are_64_bits_wide():
    """`jax_enable_x64` is the user's: what has no dtype is float64 then."""
    q, k, v = case()
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)
    wanted = flash.attend(q, k, v, mask, None, options, interpret=True)
    with jax.enable_x64(True):
        found = flash.attend(q, k, v, mask, None, options, interpret=True)
    np.testing.assert_array_equal(found, wanted)


@PALLAS
def test_a_kernel_in_bfloat16(kernel):
    q, k, v = case(dtype=jnp.bfloat16)
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)
    found = kernel.attend(q, k, v, mask, None, options, interpret=True)
    wanted = plain.attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask, None, options)
    real = np.asarray(mask.segments) > 0
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(wanted)[real], atol=0.02)


@PALLAS
def test_a_kernel_under_a_mesh_runs_row_by_row(kernel):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    q, k, v = case()
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)
    with jax.set_mesh(mesh):
        # The segments are handed in: a dataclass is no argument of a jitted function.
        compute = jax.jit(
            lambda q, k, v, s: kernel.attend(q, k, v, AttentionMask(s), None, options, interpret=True)
        )  # fmt: skip
        found = compute(q, k, v, mask.segments)
    np.testing.assert_allclose(found, kernel.attend(q, k, v, mask, None, options, interpret=True), atol=1e-6)


def test_flash_has_a_derivative():
    """By the einsums: training is not what it is for."""
    q, k, v = case(heads=4)
    mask, options = AttentionMask(segments_of(ROWS)), Options(0.25, None)

    def loss(attend, q, k, v):
        return jnp.square(attend(q, k, v, mask, None, options)[:, :370]).sum()

    found = jax.grad(partial(loss, partial(flash.attend, interpret=True)), (0, 1, 2))(q, k, v)
    wanted = jax.grad(partial(loss, plain.attend), (0, 1, 2))(q, k, v)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a[:1], b[:1], atol=1e-4)


def test_flash_meets_no_key_of_other_sequences():
    """Blocks of 128 queries: the keys that each needs, of its own sequences, its window and its past."""
    segments = jnp.asarray(segments_of(((100, 107, 300, 370), (384,), ()), TOKENS))
    for how, firsts, ends in (
        ((False, None), ((0, 107, 107), (0, 0, 0), (384,) * 3), ((300, 300, 370), (384,) * 3, (0,) * 3)),
        ((True, None), ((0, 107, 107), (0, 0, 0), (384,) * 3), ((128, 256, 370), (128, 256, 384), (0,) * 3)),
        ((False, (10, 5)), ((0, 118, 246), (0, 118, 246), (384,) * 3), ((133, 261, 370), (133, 261, 384), (0,) * 3)),
    ):
        first, end = flash._reach(segments, 128, *how)
        np.testing.assert_array_equal(first, firsts)
        np.testing.assert_array_equal(end, ends)


# In a process of its own: a process has as many devices as it began with.
ON_FOUR = """
import sys
import jax, numpy as np
from jaxpool.attention import AttentionMask, Options, plain
from jaxpool.sharding import make_mesh
from tests.test_attention import KERNELS, ROWS, case, segments_of
mask, options = {"causal": True, "window": (100, 0)}, Options(0.25, 30.0)
rows = (*ROWS, (384,), (5, 6))
segments, real = segments_of(rows), segments_of(rows) > 0
for kernel in KERNELS:
    for shards, heads, kv_heads in ((4, 8, 2), (4, 4, 1), (4, 12, 6), (2, 4, 4)):
        q, k, v = case(heads=heads, kv_heads=kv_heads, rows=rows)
        wanted = np.asarray(plain.attend(q, k, v, AttentionMask(segments, **mask), None, options))
        with jax.set_mesh(make_mesh(jax.devices(), shards)):
            compute = jax.jit(lambda q, k, v, s: kernel.attend(q, k, v, AttentionMask(s, **mask), None, options, interpret=True))
            found = np.asarray(compute(q, k, v, segments))
        np.testing.assert_allclose(found[real], wanted[real], atol=1e-5)
        print(kernel.__name__, shards, heads, kv_heads)
"""


@pytest.mark.once
def test_a_kernel_on_devices_that_share_heads():
    env = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4 * len(KERNELS)


def on(platform, shape=(4, 1)):
    """A mesh of `platform`'s devices, which need not be here."""
    device = AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    return use_abstract_mesh(AbstractMesh(shape, ("data", "model"), abstract_device=device))


def pick(backend="auto", *, tokens=LONG, width=16, dtype="float32", bias=None, scale=1.0, soft_cap=None, **mask):
    q = jax.ShapeDtypeStruct((4, tokens, 2, width), dtype)
    return choose(backend, q, q, AttentionMask(segments_of(ROWS[:1]), **mask), bias, Options(scale, soft_cap))


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
        with on("tpu", (1, 4)):
            assert pick() == "blocked"
    assert caplog.messages == [
        "attention: einsum, since splash cannot: rows have 384 tokens, and it is for 512 and more",
        "attention: einsum, since splash cannot: scores have a bias",
        "attention: blocked, since splash cannot: 2 heads do not divide over 4 devices",
    ]


def test_a_gpu_has_two_kernels(monkeypatch):
    one, several = np.full((1, 1), 300), np.full((1, 8), 30)
    gpu, array = partial(pick, dtype="bfloat16", lengths=one), jnp.float32(0.3)
    with on("gpu"):
        assert gpu() == "flash"  # no GPU here to ask for cuDNN
        monkeypatch.setattr(nvidia, "compute_capability", lambda: (9, 0))
        assert gpu() == gpu(causal=True) == gpu(causal=True, window=(5, 0)) == "cudnn"
        assert gpu(window=(5, 5)) == gpu(lengths=several) == gpu(lengths=None) == gpu(soft_cap=50.0) == "flash"
        assert gpu(tokens=128, lengths=several) == "flash"
        assert gpu(dtype="float32") == gpu(lengths=several, width=264) == "blocked"
        assert gpu(lengths=several, scale=array) == "blocked"  # it may be a tracer
        assert gpu(bias=0) == gpu(tokens=64, lengths=several) == "einsum"
        monkeypatch.setattr(nvidia, "compute_capability", lambda: (7, 5))
        assert gpu() == "blocked"


def test_a_backend_by_name_says_why_not():
    q, k, v = case(rows=ROWS[:1])
    mask = AttentionMask(segments_of(ROWS[:1]))
    np.testing.assert_array_equal(attention(q, k, v, mask), attention(q, k, v, mask, backend="einsum"))
    with pytest.raises(ValueError, match="'splash' cannot: it runs on tpu, and this program is for no mesh"):
        attention(q, k, v, mask, backend="splash")
    with on("tpu"), pytest.raises(ValueError, match="'splash' cannot: rows have 320 tokens"):
        pick("splash", tokens=320)
    with on("gpu"), pytest.raises(ValueError, match="'cudnn' cannot: dtype is float32"):
        pick("cudnn")
    with pytest.raises(
        ValueError,
        match=r"'paged' is not known, expected one of \['auto', 'splash', 'cudnn', 'flash', 'native', 'blocked', 'einsum'\]",
    ):
        attention(q, k, v, mask, backend="paged")
    assert BACKENDS["einsum"].platform is None
