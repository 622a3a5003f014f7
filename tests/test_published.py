from typing import Any

import pytest

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import ConfigError
from prenorm.published import BUILDABLE, PUBLISHED


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BUILDABLE)
def test_a_published_model_has_as_many_parameters_as_it_is_said_to_have(name):
    model = TransformerLM(ModelConfig.preset(name), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name].parameters


def test_a_preset_is_the_published_model_and_comes_back_from_json():
    config = ModelConfig.preset("llama-3.1-405b")
    assert (config.num_layers, config.num_kv_heads, config.rope_theta) == (126, 8, 500000.0)
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 8
    assert ModelConfig.preset("mistral-7b").window == 4096
    for name in BUILDABLE:
        assert ModelConfig.from_dict(ModelConfig.preset(name).to_dict()) == ModelConfig.preset(name)


@pytest.mark.parametrize("name", ["gpt3-175b", "palm-540b"])
def test_what_our_blocks_cannot_express_is_for_its_costs_alone(name):
    with pytest.raises(ConfigError, match=rf"has only a cost sheet \(prenorm cost {name}\)"):
        ModelConfig.preset(name)


def test_an_unknown_preset_is_refused_with_the_names(shapes_unchecked):
    names: Any = ("llama-9", None, ["gpt2"])
    for name in names:
        with pytest.raises(ConfigError, match=r"a model preset must be one of .*llama-3-8b"):
            ModelConfig.preset(name)
