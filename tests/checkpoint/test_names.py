import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm.checkpoint.names import parameters_of
from prenorm.checkpoint.writing import config_to_hugging_face

from .examples import IN_A_FAMILY, config


@pytest.mark.parametrize("example", IN_A_FAMILY)
def test_names_and_shapes_are_those_of_the_transformers_class(example):
    _, changes = IN_A_FAMILY[example]
    fields = config_to_hugging_face(config(**changes))
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    if changes.get("tie_embeddings"):
        del expected["lm_head.weight"]  # theirs names the shared tensor twice
    assert {parameter.hugging_face: parameter.shape for parameter in parameters_of(config(**changes))} == expected


def test_every_name_is_there_once():
    parameters = list(parameters_of(config(qk_norm=True, qkv_bias=True, o_bias=True)))
    assert len({parameter.name for parameter in parameters}) == len(parameters)
    assert len({parameter.hugging_face for parameter in parameters}) == len(parameters)
