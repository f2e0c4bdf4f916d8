"""A backbone whose batch wants some tokens only: their states are those of the whole, in every family."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.products import flops
from jaxpool.batch import OPTIONS, Inputs, unfold
from jaxpool.models import families, find_family, phi3_v
from jaxpool.params import flatten, unstack_layers
from jaxpool.poolers import POOLERS, pool, wanting
from jaxpool.program import unfold_for
from jaxpool.recipe import read_recipe
from jaxpool.tasks import EMBED, TOKEN_EMBED
from tests.tiny import JINA_CONFIG, random_weights, tiny_bert

SIZES = {"vocab_size": 91, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 40, "max_position_embeddings": 66}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
SEEN = {name: value for name, value in SIZES.items() if name not in ("vocab_size", "max_position_embeddings")}
TEXT = {"text_config": SIZES, "vision_config": SEEN | {"image_size": 28, "patch_size": 7}}
# Architecture, and config.json.
MODELS = {
    "bert": ("BertModel", SIZES),
    "bert, one layer": ("BertModel", SIZES | {"num_hidden_layers": 1}),
    "roberta": ("XLMRobertaModel", SIZES),
    "distilbert": ("DistilBertModel", {"vocab_size": 91, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40}),
    "mpnet": ("MPNetModel", SIZES),
    "jina": ("XLMRobertaModel", JINA_CONFIG),
    "modernbert": ("ModernBertModel", SIZES | {"num_hidden_layers": 5}),
    "modernbert, one layer": ("ModernBertModel", SIZES | {"num_hidden_layers": 1}),
    "qwen3": ("Qwen3Model", GROUPED | {"model_type": "qwen3", "head_dim": 8}),
    "gemma2": ("Gemma2Model", GROUPED | {"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window": 4,
                                         "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma2, two layers": ("Gemma2Model", GROUPED | {"model_type": "gemma2", "num_hidden_layers": 2,
                                                     "layer_types": ["sliding_attention", "full_attention"]}),
    "internlm2": ("InternLM2ForRewardModel", GROUPED),
    "clip": ("CLIPModel", TEXT | {"projection_dim": 20}),
    "siglip": ("SiglipModel", TEXT),
}  # fmt: skip


def make(name):
    """A family, its config and random weights."""
    architecture, values = MODELS[name]
    values = values | {"architectures": [architecture]}
    family, _ = find_family(values)
    config = family.config_from_hf(values)
    return family, config, random_weights(family.param_specs(config))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return make(request.param)


def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([[5, 1, 9, 0], [16, 0, 0, 0], [0, 0, 0, 0]], np.int32)
    options = {name: np.zeros_like(lengths) for name in OPTIONS}
    options["skip"][0, 2], options["adapter"][:2, 0] = 3, (1, 2)
    inputs = Inputs(rng.integers(5, 90, (3, 20)).astype(np.int32), lengths, **options)
    return unfold(jax.tree.map(jax.numpy.asarray, inputs)), lengths > 0


@pytest.mark.parametrize("layers", ["stacked", "apart"])
@pytest.mark.parametrize("mode", ["cls", "lasttoken"])
def test_its_states_are_those_of_the_whole(mode, layers, model):
    family, config, params = model
    whole, used = batch()
    few = wanting(whole, (mode,))
    params = params if layers == "stacked" else unstack_layers(params)
    run = jax.jit(lambda params, batch: pool(family.run(params, batch, config).hidden, batch, (mode,)))
    expected, found = (np.asarray(run(params, batch)) for batch in (whole, few))
    assert np.isfinite(found).all()
    assert np.ptp(expected[used], axis=0).min() > 1e-3  # sequences differ
    np.testing.assert_allclose(found[used], expected[used], rtol=1e-5, atol=2e-6)


def test_a_family_that_knows_nothing_of_it_is_picked_from(model):
    family, config, params = model
    assert family.picks

    def forward(params, batch, config, *, capture=()):
        assert batch.wanted is None
        return family.forward(params, batch, config, capture=capture)

    few = wanting(batch()[0], ("cls",))
    expected = family.run(params, few, config).hidden
    found = replace(family, forward=forward, picks=False).run(params, few, config).hidden
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)

    def every(params, batch, config, *, capture=()):
        return family.forward(params, replace(batch, wanted=None), config, capture=capture)

    with pytest.raises(ValueError, match="`forward` returns every token's states, so `picks` must be False"):
        replace(family, forward=every).run(params, few, config)


def test_the_last_layer_leaves_the_others_out(model):
    """Behind its attention: the output's product, and the MLP's."""
    family, config, params = model
    whole, _ = batch()

    def count(batch):
        return flops(jax.make_jaxpr(lambda params: family.run(params, batch, config).hidden)(params).jaxpr)

    stacks = "layers/" if "layers" in params else "first/"
    kernels = [
        leaf.shape[stacks == "layers/" :]
        for path, leaf in flatten(params).items()
        if path.startswith(stacks) and path.endswith("kernel") and ("mlp" in path or "output" in path)
    ]
    assert len(kernels) > 2
    (rows, tokens), wanted = whole.ids.shape, whole.lengths.shape[1]
    spared = 2 * rows * (tokens - wanted) * sum(map(math.prod, kernels))
    assert count(whole) - count(wanting(whole, ("cls",))) >= spared


@pytest.mark.parametrize("name", ["bert", "jina", "qwen3"])
def test_it_changes_with_the_weights_as_the_whole_does(name):
    family, config, params = make(name)
    whole, used = batch()

    def loss(params, batch):
        pooled = pool(family.run(params, batch, config).hidden, batch, ("lasttoken",))
        return jnp.where(used[..., None], pooled, 0).sum()

    expected, found = (jax.jit(jax.grad(loss))(params, batch) for batch in (whole, wanting(whole, ("lasttoken",))))
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(found)[path], leaf, rtol=1e-4, atol=1e-4, err_msg=path)


def test_every_family_has_a_model_here():
    """But Phi-3-V, whose tower is a large one: its parity tests pool the last token."""
    missing = {family.forward for family in families()} - {make(name)[0].forward for name in MODELS}
    assert missing == {phi3_v.forward}


def test_only_programs_of_one_token_leave_others_out(tmp_path):
    inputs = Inputs.of_shape(2, 20, 3, partial(np.ones, dtype=np.int32))
    for pooling, one in {"cls": True, "lasttoken": True, "mean": False}.items():
        recipe = read_recipe(tiny_bert(tmp_path / pooling, pooling=pooling))
        assert (unfold_for(recipe, EMBED, inputs).wanted is not None) == one
        assert unfold_for(recipe, TOKEN_EMBED, inputs).wanted is None


def test_nothing_is_captured_of_what_is_not_computed(model):
    family, config, params = model
    few = wanting(batch()[0], ("cls",))
    with pytest.raises(ValueError, match="needs a batch of which every token is wanted"):
        family.run(params, few, config, capture=family.captures[:1])


def test_poolers_of_one_token_want_it_alone():
    whole, _ = batch()
    for mode in POOLERS:
        few = wanting(whole, (mode,))
        assert (few.wanted is None) == (mode not in ("cls", "lasttoken")), mode
    assert wanting(whole, ("cls", "lasttoken")).wanted is None
    np.testing.assert_array_equal(wanting(whole, ("cls",)).wanted[:2], [[0, 5, 9, 14], [0, 15, 15, 15]])
    np.testing.assert_array_equal(wanting(whole, ("lasttoken",)).wanted[0], [4, 5, 14, 14])
