"""The rule engine: every problem in one error, transforms on slices, and back again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpool.converters.rules import Rule, Table, bind, fused, layer_norm, linear, skip, to_checkpoint
from jaxpool.converters.transforms import CheckpointError, Part, Transform
from jaxpool.params import ParamSpec, flatten

SPECS = {
    "word": {"embedding": ParamSpec((5, 4), ("vocab", "embed"))},
    "layers": {"query": {"kernel": ParamSpec((3, 4, 2, 2), ("layers", "embed", "heads", "head_dim"))}},
    "norm": {"scale": ParamSpec((4,), ("embed",)), "bias": ParamSpec((4,), ("embed",))},
}
TABLE = Table(
    rules=(
        Rule("word.weight", "word/embedding"),
        Rule("layer.{layer}.query.weight", "layers/query/kernel", Transform("(n h) d -> d n h")),
        *layer_norm("LayerNorm", "norm"),
        *linear("pooler", "pooler", optional=True),
        skip("head.*"),
    ),
    prefixes=("model.",),
    renames=((".gamma", ".weight"),),
)
SHAPES = {
    "word.weight": (5, 4),
    **{f"layer.{i}.query.weight": (4, 4) for i in range(3)},
    "LayerNorm.weight": (4,),
    "LayerNorm.bias": (4,),
}


def problems(shapes):
    with pytest.raises(CheckpointError) as error:
        bind(shapes, TABLE, SPECS)
    return str(error.value)


def test_a_fitting_checkpoint_binds():
    binding = bind(SHAPES, TABLE, SPECS)
    assert set(binding) == set(flatten(SPECS))
    assert binding["layers/query/kernel"].keys == tuple(f"layer.{i}.query.weight" for i in range(3))


def test_prefixes_old_names_skips_and_optional_parts():
    shapes = {f"model.{k.replace('LayerNorm.weight', 'LayerNorm.gamma')}": v for k, v in SHAPES.items()}
    shapes |= {"head.anything.weight": (7,), "pooler.weight": (4, 4), "pooler.bias": (4,)}
    assert bind(shapes, TABLE, SPECS)["norm/scale"].keys == ("model.LayerNorm.gamma",)


def test_all_problems_come_in_one_error():
    shapes = dict(SHAPES)
    del shapes["layer.1.query.weight"], shapes["LayerNorm.bias"]
    shapes["word.weight"] = (4, 5)
    shapes["model.LayerNorm.weight"] = (4,)
    shapes["stranger"] = (1,)
    shapes["layer.3.query.weight"] = (4, 4)
    text = problems(shapes)
    assert "6 problems" in text
    assert "missing key 'layer.1.query.weight'" in text
    assert "missing key 'LayerNorm.bias'" in text
    assert "'word.weight' has shape [4, 5], expected [5, 4]" in text
    assert "doubled: 'LayerNorm.weight' and 'model.LayerNorm.weight'" in text
    assert "unexpected key 'stranger'" in text
    assert "unexpected key 'layer.3.query.weight': the config has 3 layers" in text


def test_a_leaf_without_a_rule_is_the_tables_fault():
    with pytest.raises(CheckpointError, match="no rule fills 'extra'"):
        bind(SHAPES, TABLE, {**SPECS, "extra": ParamSpec((1,), (None,))})


def test_an_ambiguous_table_is_refused():
    table = Table((*TABLE.rules, Rule("word.weight", "norm/scale")))
    with pytest.raises(CheckpointError, match="'word.weight' is not taken once and whole by its rules"):
        bind(SHAPES, table, SPECS)


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(shape, np.float32) for key, shape in SHAPES.items()}


def test_reading_and_writing_are_inverse():
    source = tensors()
    binding = bind(SHAPES, TABLE, SPECS)
    flat = {path: leaf.read(lambda key, index: source[key][index]) for path, leaf in binding.items()}
    assert flat["layers/query/kernel"][1, 2, 1, 0] == source["layer.1.query.weight"][2, 2]
    back = dict(to_checkpoint(flat, TABLE))
    assert set(back) == set(source)
    for key in source:
        np.testing.assert_array_equal(back[key], source[key])


PATTERNS = {
    "f d -> d f": (4, 6),
    "(n h) d -> d n h": (5, 2, 3),
    "d (n h) -> n h d": (2, 3, 5),
    "(k g h) -> g k h": (2, 3, 4),
}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(PATTERNS)), st.data())
def test_a_slice_of_the_leaf_equals_the_leaf_sliced(pattern, data):
    shape, transform = PATTERNS[pattern], Transform(pattern)
    source = np.arange(np.prod(shape)).reshape(transform.source_shape(shape))
    fetched = []

    def fetch(index):
        fetched.append(source[index].size)
        return source[index]

    whole = transform.read(fetch, shape)
    np.testing.assert_array_equal(transform.invert(whole), source)
    index = tuple(
        slice(start, data.draw(st.integers(start, size)))
        for size in shape
        for start in [data.draw(st.integers(0, size))]
    )
    np.testing.assert_array_equal(transform.read(fetch, shape, index), whole[index])


def test_only_the_rows_of_a_shard_are_read():
    sizes = []
    source = np.zeros((8, 6))
    Transform("(n h) d -> d n h").read(
        lambda i: sizes.append(source[i].shape) or source[i], (6, 4, 2), (slice(0, 3), slice(1, 3), slice(None))
    )
    assert sizes == [(4, 3)]


def test_layers_of_several_dtypes_are_not_converted_silently():
    leaf = bind(SHAPES, TABLE, SPECS)["layers/query/kernel"]
    dtypes = dict(zip(leaf.keys, (np.float32, np.float16, np.float32), strict=True))

    def fetch(key, index):
        return np.ones((4, 4), dtypes[key])[index]

    assert leaf.read(fetch).dtype == np.float32
    with pytest.raises(CheckpointError, match=r"'layers/query/kernel'.*'layer.1.query.weight' float16"):
        leaf.read(fetch, exact=True)


FUSED = Table(
    (
        *fused("{layer}.Wqkv", "layers", ("query", "key", "value"), "(n h) d -> d n h", "(n h) -> n h"),
        *fused("Wi", "mlp", ("gate", "up")),  # with biases, which are read without a pattern
    )
)
FUSED_SPECS = {
    "layers": {
        name: {
            "kernel": ParamSpec((2, 5, 3, 2), ("layers", "embed", "heads", "head_dim")),
            "bias": ParamSpec((2, 3, 2), ("layers", "heads", "head_dim")),
        }
        for name in ("key", "query", "value")
    },
    "mlp": {
        name: {"kernel": ParamSpec((5, 4), ("embed", "mlp")), "bias": ParamSpec((4,), ("mlp",))}
        for name in ("up", "gate")
    },
}
FUSED_SHAPES = {
    **{f"{i}.Wqkv.{leaf}": shape for i in range(2) for leaf, shape in (("weight", (18, 5)), ("bias", (18,)))},
    "Wi.weight": (8, 5),
    "Wi.bias": (8,),
}


def test_parts_of_one_tensor_are_leaves_of_their_own_and_one_tensor_again():
    source = {key: np.random.default_rng(0).standard_normal(shape) for key, shape in FUSED_SHAPES.items()}
    binding = bind(FUSED_SHAPES, FUSED, FUSED_SPECS)
    flat = {path: leaf.read(lambda key, index: source[key][index]) for path, leaf in binding.items()}
    for part, name in enumerate(("query", "key", "value")):
        rows = source["1.Wqkv.weight"][6 * part : 6 * part + 6]
        np.testing.assert_array_equal(flat[f"layers/{name}/kernel"][1], rows.T.reshape(5, 3, 2))
        np.testing.assert_array_equal(
            flat[f"layers/{name}/bias"][0], source["0.Wqkv.bias"][6 * part : 6 * part + 6].reshape(3, 2)
        )
    np.testing.assert_array_equal(flat["mlp/up/kernel"], source["Wi.weight"][4:].T)
    np.testing.assert_array_equal(flat["mlp/gate/bias"], source["Wi.bias"][:4])
    own = binding["mlp/up/bias"].read(lambda key, index: source[key][index], (slice(1, None),))
    np.testing.assert_array_equal(own, source["Wi.bias"][5:])
    back = dict(to_checkpoint(flat, FUSED))
    assert set(back) == set(source)
    for key in source:
        np.testing.assert_array_equal(back[key], source[key])


def test_a_tensor_is_not_written_without_all_of_its_parts():
    whole = {path: np.zeros(spec.shape) for path, spec in flatten(FUSED_SPECS).items()}
    some = {path: leaf for path, leaf in whole.items() if path not in ("layers/value/kernel", "mlp/up/kernel")}
    with pytest.raises(CheckpointError, match=r"parts are missing of Wi\.weight, \{layer\}\.Wqkv\.weight"):
        list(to_checkpoint(some, FUSED))


def test_of_a_part_only_the_rows_of_a_shard_are_read():
    leaf = bind(FUSED_SHAPES, FUSED, FUSED_SPECS)["layers/value/kernel"]
    source, fetched = np.arange(18 * 5).reshape(18, 5), []

    def fetch(key, index):
        fetched.append((key, source[index].tolist()))
        return source[index]

    index = (slice(1, 2), slice(2, 4), slice(1, 2), slice(0, 2))
    np.testing.assert_array_equal(leaf.read(fetch, index)[0, :, 0], source[14:16, 2:4].T)
    assert fetched == [("1.Wqkv.weight", source[14:16, 2:4].tolist())]


def test_a_fused_tensor_of_another_height_is_refused():
    with pytest.raises(CheckpointError, match=r"\(1 problems\):\s+'Wi.weight' has shape \[9, 5\], expected \[8, 5\]"):
        bind(FUSED_SHAPES | {"Wi.weight": (9, 5)}, FUSED, FUSED_SPECS)


@pytest.mark.parametrize(
    "parts", [[Part(0, 2)], [Part(0, 2), Part(0, 2)], [Part(0, 2), Part(1, 3)], [Part(0, 1), Part(0, 2)]]
)
def test_parts_that_are_not_the_whole_tensor_once_are_refused(parts):
    rules = [Rule("Wi.weight", f"mlp/{number}/kernel", part=part) for number, part in enumerate(parts)]
    with pytest.raises(CheckpointError, match="'Wi.weight' is not taken once and whole"):
        bind({"Wi.weight": (8, 5)}, Table(tuple(rules)), {})
