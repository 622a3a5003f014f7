"""Formulas that lost a factor, a power or parentheses are explained and named, in SwiGLU and in GPT-2's design."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prenorm.checks.probes import numbers

from ..probes.started import started
from ..small import Gpt2, Right, scores_of


class Gated(Right):
    """Of this activation."""

    def feed_forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Plain(Gpt2):
    def feed_forward(self, x):
        return self.down(self.activation(self.fc(x)))


def gelu_without_x(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "x^2": (lambda x: F.relu(x.square())),
    "tanh-gelu without its factor x": gelu_without_x,
    "gelu without its factor x": (lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "tanh-gelu with x^2 for x^3": (
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))
    ),
    "twice gelu": (lambda x: x * (1 + torch.erf(x / math.sqrt(2)))),
    "twice tanh-gelu": (lambda x: 2 * x * gelu_without_x(x)),
}


class LayerNorm(nn.Module):
    """By hand. names: of its weight and bias; size: of both; power: of the standard deviation."""

    names = ("alpha", "bias")
    one_number = False
    unbiased = True
    power = 1

    def __init__(self, dim):
        super().__init__()
        for name, fill in zip(self.names, (torch.ones, torch.zeros), strict=True):
            self.register_parameter(name, nn.Parameter(fill(1 if self.one_number else dim)))

    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=int(self.unbiased))
        weight, bias = (getattr(self, name) for name in self.names)
        return self.formula(x, mean, (std + 1e-6) ** self.power, weight) + bias

    def formula(self, x, mean, std, weight):
        return weight * (x - mean) / std


class Unbracketed(LayerNorm):
    def formula(self, x, mean, std, weight):
        return weight * x - mean / std


class OnlyTheDifference(LayerNorm):
    unbiased = False

    def formula(self, x, mean, std, weight):
        return (x - mean / std) * weight


class InFrontOfTheWeight(LayerNorm):
    def formula(self, x, mean, std, weight):
        return x - mean / std * weight


class ByTheVariance(LayerNorm):
    power = 2


class OneNumber(LayerNorm):
    one_number = True


class OneNumberByTheVariance(OneNumber):
    power = 2


class TimesTheRoot(LayerNorm):
    """An RMSNorm."""

    def formula(self, x, mean, std, weight):
        return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class AttentionInPlaceOfTheSum(Right):
    def forward(self, x):
        y = self.attention(self.norm1(x))
        return y + self.feed_forward(self.norm2(x + y))


class UpForTheGate(Right):
    """In silu by hand."""

    def feed_forward(self, x):
        return self.down(self.gate(x).sigmoid() * self.up(x) * self.up(x))


NORMS = {
    Unbracketed: ("norm_wrong_mean", "weight * x - mean / std, unbiased"),
    OnlyTheDifference: ("norm_wrong_mean", "weight * (x - mean / std)"),
    InFrontOfTheWeight: ("norm_wrong_mean", "x - weight * mean / std, unbiased"),
    ByTheVariance: ("norm_without_sqrt", "divides by the unbiased variance"),
    OneNumberByTheVariance: ("norm_without_sqrt", "divides by the unbiased variance"),
}
DESIGNS = [LayerNorm, OneNumber, type("OtherNames", (LayerNorm,), {"names": ("a_2", "b_2")})]


class ParallelAndGateAfterProduct(Right):
    """As in Cohere, with LayerNorms that have no bias; and with one fault."""

    def norms(self, d_model):
        norm = nn.LayerNorm(d_model, bias=False)
        return norm, norm

    def feed_forward(self, x):
        return self.down(F.silu(self.gate(x) * self.up(x)))

    def forward(self, x):
        normed = self.norm1(x)
        return x + self.attention(normed) + self.feed_forward(normed)


class CappedWithoutScale(Right):
    def mixed(self, q, k, v):
        scores = scores_of(q * q.shape[-1] ** 0.5, k)
        return (50 * torch.tanh(scores / 50)).softmax(-1) @ v


OTHERS = {
    AttentionInPlaceOfTheSum: ("missing_residual_ffn", "where h belongs in place of attention"),
    UpForTheGate: ("wrong_activation", "sigmoid(gate) * up * up"),
    type("Times", (Right,), {"norms": lambda self, dim: (TimesTheRoot(dim), TimesTheRoot(dim))}): (
        "norm_wrong_mean",
        "multiplies by the root mean square",
    ),
    ParallelAndGateAfterProduct: ("gate_after_product", "applied to gate * up: silu"),
}


def explained(block, **members):
    case = started(type(block.__name__, (block,), members))
    case.built = case.wide()
    case.raw = case.built.draw(case.generator)
    numbers.numbers(case)
    return case.report


def norms_of(norm):
    return {"norms": lambda self, dim: (norm(dim), norm(dim))}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "block"), [(name, (Gated, Plain)[i % 2]) for i, name in enumerate(ACTIVATIONS)])
def test_an_activation_that_lost_a_factor_is_named(name, block, shapes_unchecked):
    report = explained(block, activation=staticmethod(ACTIVATIONS[name]))
    assert report.faults() == {"wrong_activation"}
    assert name in report.findings["wrong_activation"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("norm", "block"), [(norm, (Right, Gpt2)[i % 2]) for i, norm in enumerate(NORMS)])
def test_a_layer_norm_that_lost_a_root_or_parentheses_is_named(norm, block, shapes_unchecked):
    id, evidence = NORMS[norm]
    report = explained(block, **norms_of(norm))
    assert report.faults() == {id}
    assert evidence in report.findings[id]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("norm", DESIGNS)
def test_a_weight_and_a_bias_of_any_size_and_name_are_those_of_a_norm(norm, shapes_unchecked):
    report = explained(Gpt2, **norms_of(norm))
    assert report.faults() == set()
    assert "left_as_built" not in report.conventions
    assert ("norm_weight_missing" in report.choices) == norm.one_number


@pytest.mark.parametrize("block", OTHERS)
def test_a_name_in_place_of_another_is_named(block, shapes_unchecked):
    id, evidence = OTHERS[block]
    report = explained(block)
    assert report.faults() == {id}
    assert evidence in report.findings[id]


def test_scores_that_are_capped_and_not_scaled_have_that_name():
    report = explained(CappedWithoutScale)
    assert report.choices == {"missing_attention_scale"} == {*report.findings}  # capped scores may have any scale


@pytest.mark.long
def test_a_fault_beside_norms_of_one_number_is_named(shapes_unchecked):
    def forward(self, x):
        x = self.norm1(x)
        x = x + self.attention(x)
        x = self.norm2(x)
        return x + self.feed_forward(x)

    assert explained(Gpt2, forward=forward, **norms_of(OneNumber)).faults() == {"residual_from_normed"}
