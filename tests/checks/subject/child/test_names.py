import torch
from torch import nn

from prenorm.checks.subject.child.names import each, of_build, of_call


def test_what_a_line_makes_is_made_where_the_input_is() -> None:
    settings = of_build({"head_dim": 8, "max_seq_len": 24, "device": torch.device("meta")})
    assert of_call({"device"}, settings, torch.zeros(2, 3, 32), {}) == {"device": torch.device("cpu")}


def test_each_gives_a_block_one_sequence_at_a_time() -> None:
    block, x = nn.Linear(4, 4), torch.randn(2, 3, 4)
    shapes = []
    block.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    assert torch.equal(each(block)(x), torch.stack([block(x[0]), block(x[1])]))
    assert shapes[:2] == [(3, 4), (3, 4)]
