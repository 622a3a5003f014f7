import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prenorm import ConfigError, RangeError
from prenorm.layers.positions import LearnedPositions, SinusoidalPositions

from ..oracle import formulas
from ..oracle.inputs import integers, leadings, normal, seeds, seqs
from ..oracle.tolerance import array, assert_exact

D_MODEL, ROOM = 6, 32
KINDS = pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
kinds = st.sampled_from([SinusoidalPositions, LearnedPositions])


def make(kind, dtype=torch.float64):
    return kind(D_MODEL, ROOM) if kind is SinusoidalPositions else kind(D_MODEL, ROOM, dtype=dtype)


def vector(layer, position):
    """What the layer should add at a position."""
    if isinstance(layer, SinusoidalPositions):
        return formulas.sinusoid(position, D_MODEL)
    return array(layer.embedding.weight[position])


@given(kinds, leadings, seqs, st.booleans(), seeds)
def test_each_token_gets_the_vector_of_its_position(kind, leading, seq, shared, seed):
    layer, x = make(kind), normal(*leading, seq, D_MODEL, seed=seed)
    positions = integers(*(() if shared else leading), seq, limit=ROOM, seed=seed)
    y = layer(x, positions)
    assert y.shape == x.shape
    rows = zip(x.reshape(-1, D_MODEL), y.reshape(-1, D_MODEL), positions.expand(x.shape[:-1]).flatten(), strict=True)
    for before, after, position in rows:
        assert_exact(after, array(before) + vector(layer, int(position)))


def test_sines_have_no_weights_and_survive_every_move():
    layer = SinusoidalPositions(D_MODEL, ROOM)
    assert not list(layer.state_dict())
    x, positions = normal(5, D_MODEL), torch.arange(5) + 20
    with torch.device("meta"):
        made = SinusoidalPositions(D_MODEL, ROOM)
    assert torch.equal(made.to(torch.bfloat16)(x, positions), layer(x, positions))


def test_sines_are_added_in_float32_or_wider_and_the_sum_is_rounded_once():
    layer, x, positions = SinusoidalPositions(64, 2048), normal(50, 64, dtype=torch.bfloat16), torch.arange(50) + 1000
    y = layer(x, positions)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x.float(), positions).to(torch.bfloat16))
    assert not torch.equal(y, x + layer(torch.zeros_like(x), positions))


def test_a_learned_vector_gets_the_gradients_of_all_its_tokens():
    layer, x = make(LearnedPositions), normal(4, 3, D_MODEL).requires_grad_()
    layer(x, torch.tensor([5, 0, 5])).sum().backward()
    assert layer.embedding.weight.grad[:, 0].nonzero().tolist() == [[0], [5]]
    assert layer.embedding.weight.grad[5, 0] == 8
    assert x.grad.eq(1).all()


def test_device_and_dtype_reach_the_learned_weight():
    weight = LearnedPositions(D_MODEL, ROOM, device="meta", dtype=torch.bfloat16).embedding.weight
    assert (weight.shape, weight.device.type, weight.dtype) == ((ROOM, D_MODEL), "meta", torch.bfloat16)


@KINDS
@pytest.mark.parametrize(("bad", "low", "high"), [([0, ROOM], 0, ROOM), ([-1, 3], -1, 3)])
def test_a_position_outside_the_table_is_refused_with_the_numbers(kind, bad, low, high):
    rule = rf"positions must be in \[0, max_seq_len\) = \[0, {ROOM}\), but the token positions go from {low} to {high}"
    with pytest.raises(RangeError, match=rule):
        make(kind)(normal(2, D_MODEL), torch.tensor(bad))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4), "d_model must be an integer of at least 1, not 0"),
        ((4, 0), "must be an integer of at least 1, not 0"),
    ],
)
@KINDS
def test_invalid_sizes_are_refused(kind, sizes, message):
    with pytest.raises(ConfigError, match=message):
        kind(*sizes)


def test_an_odd_width_has_no_pairs_of_a_sine_and_a_cosine():
    with pytest.raises(
        ConfigError,
        match="d_model must be even, because positions are pairs of a sine and a cosine, but it is 5; d_model=6 would",
    ):
        SinusoidalPositions(5, ROOM)
