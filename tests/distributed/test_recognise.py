"""Layers of a user's own are split in a way whose parts sum to the whole, or not at all."""

import pytest
import torch
from torch import nn

from prenorm import ConfigError
from prenorm.distributed.recognise import own_layers
from prenorm.distributed.tensor_parallel import SplitLayer


def found(module, ranks=2):
    styles = own_layers(module, ranks, lambda _: None)
    return {name: (style.first, style.last, style.counts) for name, style in styles.items()}


class Attention(nn.Module):
    """With every choice of names, biases and reshapes that the cases make."""

    def __init__(self, reshape="heads", norm=None):
        super().__init__()
        self.n_head, self.width, self.depth = 4, 16, 4
        self.a, self.b, self.c = (nn.Linear(16, 16, bias=reshape == "heads") for _ in range(3))
        self.z = nn.Linear(16, 16)
        self.reshape, self.norm = reshape, norm

    def forward(self, x, mask=None):
        batch, seq = x.shape[:2]
        last = (-1, self.depth) if self.reshape == "depth" else (self.n_head, -1)
        q, k, v = (f(x).view(batch, seq, *last).transpose(1, 2) for f in (self.a, self.b, self.c))
        if self.norm is not None:
            q = self.norm(q)
        y = torch.softmax(q @ k.transpose(-1, -2) / self.depth**0.5, -1) @ v
        y = y.transpose(1, 2)
        if self.reshape == "mixed":  # over all heads, which no part has
            y = y - y.mean(2, keepdim=True)
        return self.z(y.flatten(-2) if self.reshape == "depth" else y.reshape(batch, seq, self.width))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(24, 16), nn.Linear(16, 24)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.mixing, self.mlp = Attention(**options), FeedForward()

    def forward(self, x):
        x = x + self.mixing(x, mask=None)
        return x + self.mlp(x)


def test_the_integers_that_count_heads_and_features_are_found():
    assert found(Block())["mixing"] == (("a", "b", "c"), ("z",), ("n_head", "width"))


def test_a_layer_that_asks_for_the_width_of_a_head_has_nothing_to_divide():
    assert found(Block(reshape="depth"))["mixing"] == (("a", "b", "c"), ("z",), ())


def test_which_matrix_is_the_last_does_not_depend_on_their_order():
    assert found(Block())["mlp"] == (("first",), ("second",), ())


def test_a_norm_of_each_head_serves_every_part():
    assert "mixing" in found(Block(norm=nn.LayerNorm(4)))


@pytest.mark.parametrize("ranks", [3, 8])
def test_what_cannot_be_divided_stays_whole(ranks):
    assert "mixing" not in found(Block(), ranks)


def test_a_layer_that_mixes_what_would_be_split_stays_whole():
    assert set(found(Block(reshape="mixed"))) == {"mlp"}


def test_a_last_matrix_of_zeros_is_tried_with_other_numbers():
    block = Block()
    nn.init.zeros_(block.mlp.second.weight)
    nn.init.zeros_(block.mlp.second.bias)
    assert "mlp" in found(block)
    assert not block.mlp.second.weight.any()


def test_neither_weights_nor_modes_nor_random_numbers_change():
    block, before = Block(), torch.get_rng_state()
    block.mlp.eval()
    weights = [one.clone() for one in block.parameters()]
    found(block)
    assert all(map(torch.equal, block.parameters(), weights))
    assert [block.training, block.mixing.training, block.mlp.training] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_that_cannot_be_called_on_x_alone_is_refused_with_a_way_out():
    class Picky(Block):
        def forward(self, x, positions):
            return super().forward(x) + positions

    with pytest.raises(ConfigError, match=r"which failed \(TypeError: .*positions.*styles="):
        found(Picky())


def test_nothing_that_a_block_keeps_of_its_calls_changes():
    class Keeping(Block):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.kept = []

        def forward(self, x):
            self.calls += 1
            self.kept.append(x)
            return super().forward(x)

    block = Keeping()
    assert "mixing" in found(block)
    assert (block.calls, block.kept) == (0, [])


@pytest.mark.parametrize(("beside", "is_split"), [(None, True), (torch.ones(2), False)])
def test_a_layer_may_give_none_beside_its_output_as_those_of_transformers_do_and_nothing_else(beside, is_split):
    class Pair(Attention):
        def forward(self, x, mask=None):
            return super().forward(x), beside

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = Pair()

        def forward(self, x):
            return x + self.mixing(x)[0]

    assert ("mixing" in found(Holder())) == is_split


class Conv1D(nn.Module):
    """A linear map as in transformers' GPT-2, whose weight is (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class ConvFeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Conv1D(16, 24), Conv1D(24, 16)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_maps_whose_weight_is_the_other_way_round_stay_whole_and_are_refused_by_name():
    assert found(ConvFeedForward()) == {}
    with pytest.raises(ConfigError, match=r"\(out_features, in_features\) .* but first is a Conv1D"):
        SplitLayer(("first",), ("second",)).check(ConvFeedForward(), 2)
