"""Which last step a classifier gets: problem_type, then sentence-transformers' word (new, old), then the labels."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams, read_recipe
from jaxpool.activations import by_labels, by_name, resolve_activation
from tests.tiny import tiny_classifier


def _new(kind):
    return {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{kind}"}}


def _old(kind):
    return {"sbert_ce_default_activation_function": f"torch.nn.modules.{kind}"}


# config.json, the last step with one label, with two
RULES = [
    ({}, "sigmoid", "softmax"),
    ({"problem_type": "regression"}, "identity", "identity"),
    ({"problem_type": "multi_label_classification"}, "sigmoid", "sigmoid"),
    ({"problem_type": "single_label_classification"}, "sigmoid", "softmax"),
    ({"problem_type": None}, "sigmoid", "softmax"),
    (_new("linear.Identity"), "identity", "identity"),
    (_new("activation.Tanh"), "tanh", "tanh"),
    (_new("activation.ReLU"), "relu", "relu"),
    (_new("activation.GELU"), "gelu", "gelu"),
    (_new("activation.SiLU"), "silu", "silu"),
    (_new("activation.Softmax"), "softmax", "softmax"),
    (_new("activation.Sigmoid"), "sigmoid", "sigmoid"),
    (_new("Sigmoid"), "sigmoid", "sigmoid"),
    (_old("activation.Sigmoid"), "sigmoid", "sigmoid"),
    (_old("linear.Identity"), "identity", "identity"),
    # The first that speaks is heard.
    ({"problem_type": "regression"} | _new("activation.Tanh"), "identity", "identity"),
    ({"problem_type": "single_label_classification"} | _new("activation.Tanh"), "sigmoid", "softmax"),
    (_new("activation.Tanh") | _old("linear.Identity"), "tanh", "tanh"),
    ({"sentence_transformers": {"version": "4.0"}} | _old("linear.Identity"), "identity", "identity"),
]


@pytest.mark.parametrize(("hf", "one", "two"), RULES, ids=str)
def test_rules(hf, one, two):
    assert (resolve_activation(hf, 1), resolve_activation(hf, 2)) == (one, two)


def test_by_labels():
    assert [by_labels(n) for n in (1, 2, 7)] == ["sigmoid", "softmax", "softmax"]


# Names of anything but torch's own activations, some of which importing them would run.
ERRORS = [
    ({"problem_type": "ranking"}, "config.json: `problem_type` is 'ranking', which is not understood"),
    (
        {"sentence_transformers": {"activation_fn": "os.system"}},
        r"`sentence_transformers.activation_fn` is 'os.system': loading of activation functions is restricted to torch.nn",
    ),
    ({"sbert_ce_default_activation_function": 3}, "`sbert_ce_default_activation_function` is 3: loading of activation"),
    (_new("activation.Mish"), r"expected one of \['GELU', 'Identity', .*'Tanh'\] of torch.nn.modules"),
    (_new("container.Sigmoid"), "is 'torch.nn.modules.container.Sigmoid', expected one of"),
    (_new(""), "is 'torch.nn.modules.', expected one of"),
]


@pytest.mark.parametrize(("hf", "message"), ERRORS, ids=str)
def test_what_is_not_understood(hf, message):
    with pytest.raises(ValueError, match=message):
        resolve_activation(hf, 1)


def test_by_name_names_its_source():
    assert by_name("torch.nn.modules.activation.Tanh", "here") == "tanh"
    with pytest.raises(ValueError, match="here is None: loading"):
        by_name(None, "here")


CHECKPOINTS = [
    (dict(labels=2), "softmax"),
    (dict(labels=1), "sigmoid"),
    (dict(labels=2, activation="Sigmoid"), "sigmoid"),
    (dict(labels=3, activation="Tanh"), "tanh"),
    (dict(labels=3, problem_type="multi_label_classification"), "sigmoid"),
    (dict(labels=1, problem_type="regression"), "identity"),
]


@pytest.mark.parametrize(("files", "final"), CHECKPOINTS, ids=str)
def test_from_files(tmp_path, files, final):
    recipe = read_recipe(tiny_classifier(tmp_path, **files))
    assert (recipe.task, recipe.final, recipe.activate, recipe.vector_size) == (
        "classify",
        final,
        True,
        files["labels"],
    )


def test_a_sigmoid_over_two_labels_stays_one(tmp_path):
    """vLLM makes it a softmax."""
    with LLM(tiny_classifier(tmp_path, labels=2, activation="Sigmoid"), data_parallel_size=1) as llm:
        raw = PoolingParams(use_activation=False)
        probs, logits = llm.classify(["the quick fox"] * 2, pooling_params=[PoolingParams(), raw], use_tqdm=False)
    expected = 1 / (1 + np.exp(-np.array(logits.outputs.probs)))
    np.testing.assert_allclose(probs.outputs.probs, expected, atol=1e-6)
