"""The norms of families beside their whole models: what a layer alone gives."""

import pytest
import torch
from torch import nn

from prenorm import ConfigError
from prenorm.layers.family_norm import PerHeadLayerNorm

from ..oracle.inputs import normal, randomise


def test_each_head_is_normed_with_its_own_weight():
    made, x = randomise(PerHeadLayerNorm(3, 8, eps=1e-3)).double(), normal(2, 3, 5, 8)
    for head in range(3):
        theirs = nn.LayerNorm(8, eps=1e-3, bias=False, dtype=torch.float64)
        theirs.weight = made.weights[head]
        torch.testing.assert_close(made(x)[:, head], theirs(x[:, head]))


def test_it_begins_as_a_norm_without_weights_and_goes_back_to_that():
    made, x = PerHeadLayerNorm(2, 4), normal(2, 6, 4, dtype=torch.float32)
    plain = nn.functional.layer_norm(x, (4,))
    torch.testing.assert_close(made(x), plain)
    randomise(made)
    made.reset_parameters()
    torch.testing.assert_close(made(x), plain)
    assert made.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_sizes_that_no_norm_can_have_are_refused(shapes_unchecked):
    for sizes in ((0, 4), (2, 0)):
        with pytest.raises(ConfigError, match="must be an integer of at least 1, not 0"):
            PerHeadLayerNorm(*sizes)
