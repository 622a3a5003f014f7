import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prenorm.functional as F
from prenorm import ConfigError, RangeError, ShapeError

from ..oracle import formulas
from ..oracle.inputs import integers, layouts, leadings, normal, seeds, seqs
from ..oracle.tolerance import array, assert_exact

NAMES = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "o_proj_weight")


def weights_and_features(leading, seq, d_model, *, seed=0, layout="contiguous"):
    """Four square projections and the input, as keyword arguments."""
    weights = {name: normal(d_model, d_model, seed=seed + i, layout=layout) for i, name in enumerate(NAMES)}
    return {**weights, "in_features": normal(*leading, seq, d_model, seed=seed + 9, layout=layout)}


def oracle(given, num_heads, *, theta=None, positions=None, causal=False):
    """Project, turn (if theta is given), attend, merge, project: a row at a time."""
    q_proj, k_proj, v_proj, o_proj = (array(given[name]) for name in NAMES)
    x = array(given["in_features"])
    *leading, seq, d_model = x.shape
    positions = np.broadcast_to(np.arange(seq) if positions is None else positions, (*leading, seq))
    out = np.empty(x.shape)
    for row in np.ndindex(*leading):
        q, k, v = (
            (x[row] @ proj.T).reshape(seq, num_heads, d_model // num_heads).transpose(1, 0, 2)
            for proj in (q_proj, k_proj, v_proj)
        )
        if theta is not None:
            q, k = (formulas.rope(part, positions[row], theta) for part in (q, k))
        heads = formulas.attention(q, k, v, formulas.may_attend(seq, seq, causal=causal))
        out[row] = heads.transpose(1, 0, 2).reshape(seq, d_model) @ o_proj.T
    return out


@given(leadings, seqs, st.sampled_from([(3, 1), (6, 2), (9, 3)]), st.booleans(), layouts, seeds)
def test_it_is_the_papers_formula(leading, seq, sizes, causal, layout, seed):
    d_model, num_heads = sizes
    given = weights_and_features(leading, seq, d_model, seed=seed, layout=layout)
    y = F.multihead_self_attention(d_model=d_model, num_heads=num_heads, causal=causal, **given)
    assert_exact(y, oracle(given, num_heads, causal=causal))


@given(leadings, seqs, st.sampled_from([(2, 1), (8, 2)]), st.booleans(), st.sampled_from(["none", "row", "all"]), seeds)
def test_with_rope_queries_and_keys_are_turned_by_their_positions(leading, seq, sizes, causal, positions, seed):
    d_model, num_heads = sizes
    given = weights_and_features(leading, seq, d_model, seed=seed)
    shape = {"none": None, "row": (seq,), "all": (*leading, seq)}[positions]
    token_positions = None if shape is None else integers(*shape, limit=50, seed=seed)
    y = F.multihead_self_attention_with_rope(
        d_model=d_model,
        num_heads=num_heads,
        max_seq_len=50,
        theta=100.0,
        token_positions=token_positions,
        causal=causal,
        **given,
    )
    turned_by = None if token_positions is None else token_positions.numpy()
    assert_exact(y, oracle(given, num_heads, theta=100.0, positions=turned_by, causal=causal))


def test_they_are_not_causal_unless_asked():
    given = weights_and_features((), 3, 4)
    changed = {**given, "in_features": given["in_features"].clone()}
    changed["in_features"][-1] += 1
    for causal in (False, True):
        first, second = (
            F.multihead_self_attention(d_model=4, num_heads=2, causal=causal, **weights) for weights in (given, changed)
        )
        assert torch.equal(first[:-1], second[:-1]) == causal


def test_a_width_other_than_d_model_may_go_in():
    given = weights_and_features((), 3, 4)
    narrow = {name: given[name][:, :3] for name in NAMES[:3]}
    padded = {name: torch.cat((weight, 0 * weight[:, :1]), dim=1) for name, weight in narrow.items()}
    x = given["in_features"]
    y = F.multihead_self_attention(
        d_model=4, num_heads=2, **narrow, o_proj_weight=given["o_proj_weight"], in_features=x[:, :3]
    )
    assert_exact(y, oracle({**given, **padded}, 2))


@pytest.mark.parametrize("bad", [8, -1])
def test_a_position_outside_the_context_is_refused_with_the_numbers(bad):
    given = weights_and_features((2,), 2, 4)
    message = rf"positions must be in \[0, max_seq_len\) = \[0, 8\), but .* from {min(bad, 3)} to {max(bad, 3)}"
    with pytest.raises(RangeError, match=message):
        F.multihead_self_attention_with_rope(
            d_model=4, num_heads=2, max_seq_len=8, theta=10.0, token_positions=torch.tensor([3, bad]), **given
        )


def test_more_tokens_than_positions_are_refused():
    given = weights_and_features((), 5, 4)
    with pytest.raises(RangeError, match="5 tokens need positions up to 4; max_seq_len=5 would do"):
        F.multihead_self_attention_with_rope(d_model=4, num_heads=2, max_seq_len=4, theta=10.0, **given)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("shape", [(4,), (3, 3), (3, 1, 3), (2, 1)])
def test_positions_of_another_shape_are_refused(shape):
    given = weights_and_features((2,), 3, 4)
    with pytest.raises(ShapeError, match=r"token_positions must be \(seq,\) = \(3,\) or \(..., seq\) = \(2, 3\)"):
        F.multihead_self_attention_with_rope(
            d_model=4,
            num_heads=2,
            max_seq_len=8,
            theta=10.0,
            token_positions=torch.zeros(shape, dtype=torch.int64),
            **given,
        )


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_positions_that_are_no_integers_are_refused(dtype):
    given = weights_and_features((), 3, 4)
    with pytest.raises(ShapeError, match=f"token_positions must be int64 or int32, but they are {dtype}"):
        F.multihead_self_attention_with_rope(
            d_model=4, num_heads=2, max_seq_len=8, theta=10.0, token_positions=torch.ones(3, dtype=dtype), **given
        )


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 3), (4, 3)])
def test_a_weight_of_another_shape_is_refused_by_name(name, shape):
    given = {**weights_and_features((), 3, 4), name: normal(*shape)}
    with pytest.raises(ShapeError, match=name):
        F.multihead_self_attention(d_model=4, num_heads=2, **given)
    with pytest.raises(ShapeError, match=name):
        F.multihead_self_attention_with_rope(d_model=4, num_heads=2, max_seq_len=8, theta=10.0, **given)


def test_heads_that_do_not_divide_the_width_are_refused():
    given = weights_and_features((), 3, 6)
    with pytest.raises(ConfigError, match="num_heads must divide d_model, but 4 does not divide 6"):
        F.multihead_self_attention(d_model=6, num_heads=4, **given)
    with pytest.raises(ConfigError, match="head_dim must be even"):
        F.multihead_self_attention_with_rope(d_model=6, num_heads=2, max_seq_len=8, theta=10.0, **given)


def test_their_gradients_are_right():
    given = {name: tensor.requires_grad_() for name, tensor in weights_and_features((), 3, 4).items()}

    def call(*tensors):
        keywords = dict(zip(given, tensors, strict=True))
        plain = F.multihead_self_attention(d_model=4, num_heads=2, **keywords)
        turned = F.multihead_self_attention_with_rope(
            d_model=4, num_heads=2, max_seq_len=9, theta=10.0, token_positions=torch.tensor([7, 0, 7]), **keywords
        )
        return plain, turned

    assert torch.autograd.gradcheck(call, list(given.values()))
