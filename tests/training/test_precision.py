import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.training.precision import FIRST_SCALE, GROWS_AFTER, LossScale, RoundedCopy


def model_of(**fields):
    return TransformerLM(ModelConfig(40, d_model=16, num_layers=2, num_heads=2, max_seq_len=16, **fields))


def test_the_scale_halves_at_an_overflow_and_doubles_after_enough_good_steps():
    scale = LossScale()
    scale.overflowed()
    assert scale.scale == FIRST_SCALE / 2
    for _ in range(GROWS_AFTER - 1):
        scale.succeeded()
    assert scale.scale == FIRST_SCALE / 2
    scale.overflowed()  # which starts the count anew
    for _ in range(GROWS_AFTER - 1):
        scale.succeeded()
    assert scale.scale == FIRST_SCALE / 4
    scale.succeeded()
    assert scale.scale == FIRST_SCALE / 2
    for _ in range(40):
        scale.overflowed()
    assert scale.scale == 1


def test_a_scale_goes_on_from_its_fields():
    scale, again = LossScale(), LossScale()
    scale.overflowed()
    for _ in range(GROWS_AFTER - 1):
        scale.succeeded()
    again.load_fields(scale.to_fields())
    for one in (scale, again):
        one.succeeded()
    assert again.scale == scale.scale == FIRST_SCALE
    assert again.to_fields() == scale.to_fields()


def test_unscaling_gives_back_the_gradient_bit_for_bit():
    parameter = torch.nn.Parameter(torch.randn(50))
    gradient = torch.randn(50)
    scale = LossScale()
    parameter.grad = gradient * scale.scale
    scale.unscale([parameter, torch.nn.Parameter(torch.zeros(1))])
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("tied", [False, True])
def test_a_rounded_copy_computes_in_its_format_and_leaves_its_gradients_with_the_model(tied):
    model = model_of(tie_embeddings=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rounded = RoundedCopy(model, torch.bfloat16)
    tokens = torch.arange(18).reshape(2, 9)
    expected = []
    for _ in range(2):  # gradients are added up in float32
        rounded.model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        expected.append([parameter.grad.float() for parameter in rounded.model.parameters()])
        rounded.hand_over_gradients()
    assert {parameter.dtype for parameter in rounded.model.parameters()} == {torch.bfloat16}
    assert all(parameter.grad is None for parameter in rounded.model.parameters())
    for parameter, first, second in zip(model.parameters(), *expected, strict=True):
        assert torch.equal(parameter.grad, first + second)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_rounded_copy_follows_the_weights():
    model = model_of()
    rounded = RoundedCopy(model, torch.bfloat16)
    with torch.no_grad():
        model.embedding.weight += 1
    assert not torch.equal(rounded.model.embedding.weight, model.embedding.weight.bfloat16())
    rounded.follow()
    for name, weight in rounded.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16())
