"""The simulation of a Ray Data job (benchmarks/scale.py): what must hold whatever is assumed."""

from dataclasses import fields, replace

import pytest

from benchmarks import roofline, scale
from benchmarks.published import MODELS

BERT = MODELS["bge-base"]
KIND = scale.KINDS["v5e"]
# A hundred blocks an actor at 256 chips, with nothing but chips in the way.
CHIPS_ALONE = scale.Assumptions(
    passages=100 * 32 * 512,
    block_rows=512,
    task_seconds=1e-9,
    reading_rate=1e12,
    store_rate=1e15,
    tokenising_rate=1e12,
    engine_seconds=1e-12,
)
SLOW = {
    "reader": {"reading_rate": 10.0},
    "driver": {"task_seconds": 100.0},
    "object store": {"store_rate": 1e3},
    "tokenising": {"tokenising_rate": 100.0},
    "engine": {"engine_seconds": 1.0},
    "chips": {"mfu": 1e-6},
}


def test_one_chip_is_the_closed_form():
    found = scale.run(CHIPS_ALONE, KIND, BERT, 1)
    flops = CHIPS_ALONE.passages * roofline.flops(BERT, 250)
    assert found.seconds == pytest.approx(flops / (197e12 * 0.4), rel=1e-6)
    assert found.cost == pytest.approx(found.seconds / 3600 * 1.2)
    assert found.tokens == pytest.approx(250 * found.passages)


@pytest.mark.parametrize("name", SLOW)
def test_the_slowest_stage_is_named_and_never_outrun(name):
    given = replace(CHIPS_ALONE, **SLOW[name])
    for chips in (1, 8, 32):
        job = scale.make_job(given, KIND, BERT, chips)
        assert job.slowest.name == name
        # Only the first and the last block keep it waiting.
        assert job.bound * (1 - 1e-9) <= scale.simulate(job) <= job.bound * 1.02
        assert scale.run(given, KIND, BERT, chips).limit.startswith(f"{name} (")


def test_no_combination_is_quicker_than_its_slowest_stage():
    alike = replace(CHIPS_ALONE, task_seconds=1e-3, reading_rate=3e4, store_rate=5e7, tokenising_rate=3e5)
    for tasks in (1, 3, 30):
        for in_flight in (1, 2, 4):
            job = scale.make_job(replace(alike, block_tasks=tasks, in_flight=in_flight), KIND, BERT, 64)
            assert scale.simulate(job) >= job.bound * (1 - 1e-9)


@pytest.mark.parametrize("given", [CHIPS_ALONE, replace(CHIPS_ALONE, task_seconds=2e-3, store_rate=1e8)])
def test_more_chips_are_never_slower(given):
    seconds = [scale.run(given, KIND, BERT, chips).seconds for chips in scale.CHIPS]
    assert seconds == sorted(seconds, reverse=True)


def test_cost_does_not_depend_on_chips_while_they_limit():
    costs = [scale.run(CHIPS_ALONE, KIND, BERT, chips).cost for chips in scale.CHIPS]
    assert costs == pytest.approx([costs[0]] * len(costs), rel=0.02)


def test_one_block_in_flight_waits_for_the_object_store():
    given = replace(CHIPS_ALONE, store_rate=2e7)
    job = scale.make_job(given, KIND, BERT, 8)
    one = scale.simulate(replace(job, in_flight=1))
    assert one == pytest.approx(job.blocks * (job.store.seconds + max(s.seconds for s in job.host)), rel=0.01)
    assert scale.simulate(job) < one


def test_chips_that_do_not_divide():
    with pytest.raises(ValueError, match="12 chips do not divide into actors of 8"):
        scale.make_job(scale.Assumptions(), KIND, BERT, 12)


def test_tables(capsys):
    scale.main(
        "--passages 1e6 --chips 1 8 --mfu 0.3 --price 2 --kinds v5e --models bge-base qwen3-embedding-8b".split()
    )
    printed = capsys.readouterr().out
    for one in (*fields(scale.Assumptions), *fields(scale.Kind)):
        assert f"| `--{one.name.replace('_', '-')}` |" in printed
    assert "| `--price` | v5e 2 |" in printed
    assert "v5e, MFU 0.3 assumed:" in printed
    assert "| qwen3-embedding-8b | 1 | does not fit |" in printed
    assert "| bge-base | 8 × v5e |" in printed
