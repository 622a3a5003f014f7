"""The numbers themselves are compared where the modules are tested: tests/layers, tests/blocks and tests/models."""

import warnings

import pytest
import torch
from torch import nn

from prenorm import CheckpointError, MultiHeadAttention, TransformerDecoderBlock, TransformerEncoderBlock
from prenorm.checkpoint.pytorch import from_pytorch, to_pytorch
from prenorm.models.decoder import TransformerDecoder
from prenorm.models.encoder import TransformerEncoder

from ..oracle.inputs import normal, randomise
from ..oracle.tolerance import array, assert_exact

D, HEADS, D_FF = 8, 2, 12
OPTIONS = {"activation": "gelu", "batch_first": True, "norm_first": True}


def encoder_layer():
    return nn.TransformerEncoderLayer(D, HEADS, D_FF, 0.0, **OPTIONS)


def decoder_layer():
    return nn.TransformerDecoderLayer(D, HEADS, D_FF, 0.0, **OPTIONS)


PAIRS = {
    "attention": (lambda: nn.MultiheadAttention(D, HEADS), lambda: MultiHeadAttention(D, HEADS)),
    "encoder block": (encoder_layer, lambda: TransformerEncoderBlock(D, HEADS, D_FF)),
    "decoder block": (decoder_layer, lambda: TransformerDecoderBlock(D, HEADS, D_FF)),
    "encoder": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2, nn.LayerNorm(D), enable_nested_tensor=False),
        lambda: TransformerEncoder(2, D, HEADS, D_FF),
    ),
    "decoder": (
        lambda: nn.TransformerDecoder(decoder_layer(), 11, nn.LayerNorm(D)),  # layers.10 is not layers.1
        lambda: TransformerDecoder(11, D, HEADS, D_FF),
    ),
}
pairs = pytest.mark.parametrize(("theirs", "ours"), PAIRS.values(), ids=PAIRS)


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], wanted[name]) for name in wanted)


@pairs
def test_there_and_back_again_changes_nothing(theirs, ours):
    theirs, ours = randomise(theirs()), randomise(ours())
    assert_same(to_pytorch(from_pytorch(theirs.state_dict())), theirs.state_dict())
    assert_same(from_pytorch(to_pytorch(ours.state_dict())), ours.state_dict())


@pairs
def test_each_takes_the_others_weights_whole(theirs, ours):
    given, taken, ours = randomise(theirs()), theirs(), ours()
    ours.load_state_dict(from_pytorch(given.state_dict()))  # strict: nothing is missing and nothing left
    taken.load_state_dict(to_pytorch(ours.state_dict()))
    assert_same(taken.state_dict(), given.state_dict())


def test_the_three_projections_are_cut_in_their_order():
    theirs = randomise(nn.MultiheadAttention(2, 1)).state_dict()
    packed = theirs["in_proj_weight"], theirs["in_proj_bias"]
    ours = from_pytorch(theirs)
    assert sorted(ours) == sorted(f"{name}_proj.{kind}" for name in "qkvo" for kind in ("weight", "bias"))
    for kind, whole in zip(("weight", "bias"), packed, strict=True):
        for first, name in zip((0, 2, 4), "qkv", strict=True):
            assert torch.equal(ours[f"{name}_proj.{kind}"], whole[first : first + 2])
        assert torch.equal(ours[f"o_proj.{kind}"], theirs[f"out_proj.{kind}"])


def test_the_tensors_may_come_in_any_order():
    for theirs, _ in (pair for name, pair in PAIRS.items() if "decoder" in name):
        state = theirs().state_dict()
        turned = dict(reversed(state.items()))
        assert_same(from_pytorch(turned), from_pytorch(state))
        assert_same(to_pytorch(dict(reversed(from_pytorch(state).items()))), state)


def test_pytorchs_whole_transformer_goes_into_an_encoder_and_a_decoder_and_gives_the_same_numbers():
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 1, "dim_feedforward": D_FF, "dropout": 0.0}
    with warnings.catch_warnings(action="ignore"):  # its encoder warns of itself
        theirs = randomise(nn.Transformer(D, HEADS, **sizes, **OPTIONS).double()).train()
    ours = nn.Module()
    ours.encoder = TransformerEncoder(2, D, HEADS, D_FF, dropout=0.0, dtype=torch.float64)
    ours.decoder = TransformerDecoder(1, D, HEADS, D_FF, dropout=0.0, dtype=torch.float64)
    ours.load_state_dict(from_pytorch(theirs.state_dict()))
    source, target = normal(3, 5, D), normal(3, 4, D, seed=1)
    assert_exact(ours.decoder(target, ours.encoder(source)), array(theirs(source, target)))
    assert_same(to_pytorch(ours.state_dict()), theirs.state_dict())


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"add_bias_kv": True}, "bias_k, bias_v"),
        ({"kdim": 6, "vdim": 6}, "k_proj_weight, q_proj_weight, v_proj_weight"),
    ],
)
def test_attentions_that_ours_cannot_be_are_refused_by_all_their_names(options, names):
    message = f"names must be those of PyTorch's Transformer modules, not {names}"
    with pytest.raises(CheckpointError, match=message):
        from_pytorch(nn.MultiheadAttention(D, HEADS, **options).state_dict())


def test_all_unknown_names_are_told_in_both_directions():
    tensors = {"z.weight": torch.ones(1), "norm1.weight": torch.ones(1), "lm_head.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"PyTorch's Transformer modules, not lm_head\.weight, z\.weight"):
        from_pytorch(tensors)
    with pytest.raises(CheckpointError, match=r"the encoder-decoder family, not lm_head\.weight, z\.weight"):
        to_pytorch(tensors)
    with pytest.raises(CheckpointError, match=r"not norm1\.running_mean"):
        to_pytorch({"norm1.running_mean": torch.ones(1)})


def test_three_projections_in_one_must_be_three():
    with pytest.raises(CheckpointError, match=r"self_attn.in_proj_bias must be three stacked projections, .* \(8,\)"):
        from_pytorch({"self_attn.in_proj_bias": torch.ones(8)})


@pytest.mark.parametrize("missing", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_an_attention_that_is_not_whole_is_refused_by_what_is_missing(missing, kind):
    tensors = TransformerDecoderBlock(D, HEADS).state_dict()
    name = f"cross_attn.{missing}_proj.{kind}"
    del tensors[name]
    with pytest.raises(CheckpointError, match=f"but {name} is missing"):
        to_pytorch(tensors)


def test_modules_without_biases_keep_their_names():
    theirs = nn.TransformerEncoderLayer(D, HEADS, D_FF, bias=False, **OPTIONS).state_dict()
    assert not any(name.endswith("bias") for name in from_pytorch(theirs))
    assert_same(to_pytorch(from_pytorch(theirs)), theirs)
