import pytest

from prenorm.checkpoint.fit import check_fit
from prenorm.checkpoint.names import parameters_of
from prenorm.errors import CheckpointError

from .examples import config


def found_in(config):
    return {parameter.hugging_face: ("F32", parameter.shape) for parameter in parameters_of(config)}


def check(config, found):
    return check_fit(config, found, hugging_face=True, source="the folder")


def test_exactly_the_tensors_of_the_config_fit():
    found = found_in(config())
    assert check(config(), found) == list(found)


def test_every_difference_is_named_at_once():
    found = found_in(config(qk_norm=True, num_layers=3))
    del found["model.norm.weight"]
    found["model.embed_tokens.weight"] = ("F32", (60, 24))
    found["lm_head.weight"] = ("F8_E4M3", (61, 24))
    with pytest.raises(CheckpointError) as raised:
        check(config(num_layers=3), found)
    assert str(raised.value) == (
        "the folder: the tensors must be exactly those of the config, but some are missing: model.norm.weight; "
        "unexpected: model.layers.*.self_attn.q_norm.weight (layers 0 to 2), model.layers.*.self_attn.k_norm.weight "
        "(layers 0 to 2); of another shape: model.embed_tokens.weight (60, 24) instead of (61, 24); "
        "of a dtype other than F32, BF16, F16, F64: lm_head.weight F8_E4M3."
    )


@pytest.mark.parametrize("end", ["qweight", "SCB", "weight_scale_inv", "weight.absmax"])
def test_tensors_of_a_quantised_model_are_called_so(end):
    name = f"model.layers.1.mlp.up_proj.{end}"
    with pytest.raises(CheckpointError, match=f"{name} is of a quantised model, and only those of prenorm are"):
        check(config(), found_in(config()) | {name: ("I32", (5, 5))})


def test_a_hundred_strange_tensors_are_named_briefly():
    found = found_in(config()) | {f"strange{i}{'x' * 10**5}\n": ("F32", (1,)) for i in range(100)}
    with pytest.raises(CheckpointError, match=r'unexpected: "strange0x+\.\.\., .*, and 50 more kinds\.') as raised:
        check(config(), found)
    assert len(str(raised.value)) < 5000


def test_the_layers_that_lack_a_tensor_are_named():
    found = found_in(config(num_layers=12))
    for layer in (0, 3, 4, 5, 9):
        del found[f"model.layers.{layer}.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing: model.layers.\*.mlp.up_proj.weight \(layers 0, 3 to 5, 9\)\."):
        check(config(num_layers=12), found)


def test_a_config_of_a_billion_layers_is_refused_at_once():
    with pytest.raises(
        CheckpointError, match="a model of 1000000000 layers needs several tensors per layer, but there are only 21"
    ):
        check(config(num_layers=10**9), found_in(config()))


@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"])
def test_rotary_tables_of_old_folders_are_left_out(name):
    assert name not in check(config(), found_in(config()) | {name: ("F32", (3,))})


def test_a_tied_model_may_bring_its_head_in_the_right_shape_only():
    tied = config(tie_embeddings=True)
    assert "lm_head.weight" in check(tied, found_in(tied) | {"lm_head.weight": ("F32", (61, 24))})
    with pytest.raises(CheckpointError, match=r"of another shape: lm_head.weight \(61, 25\)"):
        check(tied, found_in(tied) | {"lm_head.weight": ("F32", (61, 25))})
