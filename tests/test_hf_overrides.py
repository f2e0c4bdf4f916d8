"""What users put over config.json; and checkpoints in fewer bits, which are refused by name."""

import pytest

from jaxpool import read_recipe
from jaxpool.hf_overrides import ConfigView, override
from tests.tiny import tiny_bert

HF = {"model_type": "bert", "num_labels": 2, "is_matryoshka": False}


def _attribute(config):
    config.is_matryoshka = True
    return config


def _update(config):
    config.update({"is_matryoshka": config.get("nothing") is None and config.num_labels == 2})
    return config


@pytest.mark.parametrize("overrides", [{"is_matryoshka": True}, _attribute, _update])
def test_dict_or_function(overrides):
    before = dict(HF)
    assert override(HF, overrides) == HF | {"is_matryoshka": True}
    assert before == HF


def test_nothing_to_override():
    assert override(HF, None) == override(HF, {}) == override(HF, lambda config: config) == HF
    assert override(HF, lambda config: ConfigView(**config.to_dict(), more=1)) == HF | {"more": 1}


WRONG = [
    (3, "hf_overrides is 3, expected a dict or a function"),
    ("is_matryoshka", "hf_overrides is 'is_matryoshka', expected a dict"),
    (lambda config: None, "hf_overrides gave a NoneType, expected the config that it was called with"),
    (lambda config: config.to_dict(), "hf_overrides gave a dict, expected the config"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_wrong_ones(overrides, message):
    with pytest.raises(ValueError, match=message):
        override(HF, overrides)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def test_a_recipe_follows_them(directory):
    assert read_recipe(directory, {"max_position_embeddings": 40}).max_length == 40
    with pytest.raises(AttributeError, match="no_such_attribute"):
        read_recipe(directory, lambda config: config.no_such_attribute)
    assert read_recipe(directory, {"is_decoder": None}).config == read_recipe(directory).config


QUANTISED = [
    ({"quant_method": "awq", "bits": 4}, "AWQ"),
    ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
    ({"quant_method": "fp8"}, "FP8"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"bits": 3}, "a quantised"),
]


@pytest.mark.parametrize(("stored", "name"), QUANTISED, ids=str)
def test_quantised_checkpoints_are_refused_by_name(directory, stored, name):
    message = f"the checkpoint is stored in {name} form .*; jaxpool reads float checkpoints"
    with pytest.raises(ValueError, match=message):
        read_recipe(directory, {"quantization_config": stored})
    assert read_recipe(directory, {"quantization_config": None})
