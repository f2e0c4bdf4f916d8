"""The planners: nothing lost, nothing doubled, every row within its shape, padding small, shapes few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.batching import Shape, balance, make_ladder, plan
from jaxpool.memory import shaping


def check(plans, lengths, ladder, missing=()):
    placed = [int(i) for p in plans for i in p.members.ravel() if i >= 0]
    assert sorted([*placed, *missing]) == list(range(len(lengths)))
    for p in plans:
        assert p.shape in ladder.shapes
        assert p.members.shape == (p.shape.rows, p.shape.places)
        for row in p.members:
            used = row[row >= 0]
            assert (row[: len(used)] == used).all(), "unused places stand behind the used ones"
            assert sum(lengths[i] for i in used) <= p.shape.tokens


def test_the_longest_row_fills_whole_lanes():
    assert max(make_ladder(8194, 16_384, lanes=128).full) == 8320
    assert max(make_ladder(514, 16_384, lanes=128).full) == 640
    assert max(make_ladder(512, 16_384, lanes=128).full) == 512
    assert max(make_ladder(514, 512).full) == 528


ladders = st.builds(
    make_ladder,
    st.sampled_from([16, 40, 256, 512, 2048]),
    st.sampled_from([128, 512, 4096]),
    packed=st.booleans(),
    row_multiple=st.sampled_from([1, 8]),
)


@settings(max_examples=200, deadline=None)
@given(ladders, st.data())
def test_everything_is_placed_once(ladder, data):
    longest = max(ladder.full)
    lengths = data.draw(st.lists(st.integers(1, longest), max_size=300))
    plans, held = plan(lengths, ladder)
    assert held == []
    check(plans, lengths, ladder)


@settings(max_examples=200, deadline=None)
@given(ladders, st.integers(1, 5), st.data())
def test_balanced_plans_hold_the_same(ladder, streams, data):
    lengths = data.draw(st.lists(st.integers(1, max(ladder.full)), max_size=200))
    plans, _ = plan(lengths, ladder)
    balanced = balance(plans, lengths, ladder, streams)
    check(balanced, lengths, ladder)
    if streams == 1 or not ladder.packed:
        assert balanced == plans


def test_what_is_left_over_goes_out_in_small_batches_where_they_cost_less():
    rows = lambda cost: [p.shape.rows for p in plan([128] * 3, make_ladder(256, 512, small_cost=cost))[0]]  # noqa: E731
    assert rows(1.25) == [1, 1, 1]  # 3 · 128 · 1.25 tokens are fewer than 512
    assert rows(2.0) == [4]


def test_devices_have_rows_of_their_own():
    lengths = [8] * 64
    cpu, chip = (plan(lengths, make_ladder(256, 512, **shaping(kind)))[0] for kind in ("cpu", "tpu"))
    assert [p.shape for p in cpu] == [Shape(tokens=64, rows=8, places=16)]
    assert [p.shape for p in chip] == [Shape(tokens=128, rows=4, places=32)]


def test_the_last_batch_is_shared_out():
    ladder = make_ladder(256, 512)
    lengths = [128] * 12  # three batches of four rows, for two streams
    plans, _ = plan(lengths, ladder)
    assert [p.shape.rows for p in plans] == [4, 4, 4]
    assert [p.shape.rows for p in balance(plans, lengths, ladder, 2)] == [4, 4, 1, 1, 1, 1]
    assert balance(plans[:2], lengths, ladder, 2) == plans[:2]
    assert [p.shape.rows for p in balance(plans[:1], lengths, ladder, 2)] == [1, 1, 1, 1]


@settings(max_examples=100, deadline=None)
@given(ladders, st.data())
def test_what_may_wait_is_held_back_whole(ladder, data):
    longest = max(ladder.full)
    lengths = data.draw(st.lists(st.integers(1, longest), max_size=200))
    flush = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    plans, held = plan(lengths, ladder, flush=flush)
    check(plans, lengths, ladder, held)
    assert not any(flush[i] for i in held)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_length", [20, 128, 512, 8192, 40_960])
@pytest.mark.parametrize("budget", [512, 16_384])
@pytest.mark.parametrize("kind", ["cpu", "tpu"])
def test_the_ladder_is_short(packed, max_length, budget, kind):
    ladder = make_ladder(max_length, budget, packed=packed, **shaping(kind))
    assert len(ladder.shapes) <= 12
    assert max(ladder.full) >= max_length
    assert max(ladder.small) >= max_length
    assert all(shape.rows * shape.tokens <= max(budget, shape.tokens) for shape in ladder.shapes)


def test_rows_are_a_multiple_of_the_data_axis():
    ladder = make_ladder(256, 4096, row_multiple=8)
    assert all(shape.rows % 8 == 0 for shape in ladder.shapes)


def test_short_texts_share_rows():
    ladder = make_ladder(256, 512)
    plans, _ = plan([8] * 64, ladder)
    assert [p.shape for p in plans] == [Shape(tokens=128, rows=4, places=32)]


def test_a_single_short_text_gets_a_small_batch():
    (single,), _ = plan([7], make_ladder(256, 512))
    assert single.shape.area == 16


def test_one_sequence_a_row_depends_on_its_own_length_alone():
    ladder = make_ladder(256, 512, packed=False)
    alone = {n: plan([n], ladder)[0][0].shape for n in range(1, 257)}
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 257, 500).tolist()
    for p in plan(lengths, ladder)[0]:
        for i in p.members.ravel():
            assert i < 0 or p.shape == alone[lengths[i]]


def test_padding_of_a_mixed_corpus():
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.9, 0.9, 4000).astype(int), 3, 512).tolist()
    plans, _ = plan(lengths, make_ladder(512, 512))
    computed = sum(p.shape.area for p in plans)
    assert 1 - sum(lengths) / computed <= 0.05


def test_the_planner_is_quick():
    # 20,000 sequences are more than a window ever holds; a quadratic planner would not come back.
    lengths = np.random.default_rng(2).integers(3, 512, 20_000).tolist()
    plans, _ = plan(lengths, make_ladder(512, 16_384))
    check(plans, lengths, make_ladder(512, 16_384))
