"""With a key, what is dropped does not depend on how a batch is cut or spread."""

import itertools

import pytest
import torch

import prenorm.functional as F
from prenorm import ModelConfig, ShapeError, TransformerLM, use_backend
from prenorm.kernels.dropout_masks import STREAM, DropoutKey, dropout_key, enter_layer

ROWS, SEQ = 4, 33
WIDE = STREAM // 16 + 5  # a row of hidden states that takes three starts of the generator, which end within tokens


def key_of(rows=range(ROWS), **fields):
    return DropoutKey(**{"seed": 1, "step": 2, "rows": tuple(rows), "seq": SEQ, **fields})


def dropped(x, key, layer=3, masks=1, p=0.3):
    with dropout_key(key):
        enter_layer(layer)
        for _ in range(masks):
            y = F.dropout(x, p)
    return y == 0


def test_it_follows_from_seed_step_layer_site_and_row():
    x = torch.ones(ROWS, SEQ, 64)
    usual = dropped(x, key_of())
    assert torch.equal(usual, dropped(x, key_of()))
    others = [
        dropped(x, key_of(seed=-1)),
        dropped(x, key_of(seed=2**80)),
        dropped(x, key_of(step=3)),
        dropped(x, key_of(), layer=4),
        dropped(x, key_of(), masks=2),
        dropped(x, key_of(rows=range(1, ROWS + 1))),
        usual.roll(1, 0),
    ]
    for one, other in itertools.combinations([usual, *others], 2):
        assert 0.3**2 / 1.3 < (one & other).float().mean() < 0.3**2 * 1.3  # as for independent masks


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_a_share_p_is_dropped(p):
    mask = dropped(torch.ones(ROWS, SEQ, WIDE), key_of(), p=p)
    for share in (mask.float().mean(), mask[:, -1].float().mean(), mask[:, :, -1].float().mean()):
        assert abs(share - p) < 0.05 + 5 * (p * (1 - p) / (ROWS * SEQ)) ** 0.5


@pytest.mark.parametrize("width", [1, 7, WIDE])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_the_rows_and_of_the_sequence_get_their_parts_of_the_mask(width, parts):
    x = torch.ones(ROWS, SEQ, width)
    whole = dropped(x, key_of())
    assert torch.equal(dropped(x[2:], key_of(rows=[2, 3])), whole[2:])
    assert torch.equal(dropped(x[[3, 1]], key_of(rows=[3, 1])), whole[[3, 1]])
    chunks = [dropped(chunk, key_of(part=part, parts=parts)) for part, chunk in enumerate(x.chunk(parts, dim=1))]
    assert torch.equal(torch.cat(chunks, 1), whole)


def test_processes_that_all_have_the_whole_sequence_drop_the_same():
    x = torch.ones(ROWS, SEQ, 16)
    assert torch.equal(dropped(x, key_of(part=1, parts=2)), dropped(x, key_of()))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_parts_of_the_heads_get_their_parts_of_the_mask(backend, dtype, kv_heads):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(ROWS, 6, SEQ, 4, generator=draw, dtype=dtype)
    k, v = (torch.randn(ROWS, kv_heads, SEQ, 4, generator=draw, dtype=dtype) for _ in range(2))

    def attend(key, q, k, v):
        with use_backend(backend), dropout_key(key):
            return F.scaled_dot_product_attention(q, k, v, causal=True, dropout=0.4)

    whole = attend(key_of(), q, k, v)
    parts = [attend(key_of(part=part, parts=2), *(one.chunk(2, 1)[part] for one in (q, k, v))) for part in range(2)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)  # products of other sizes may round otherwise
    assert not torch.allclose(whole, F.scaled_dot_product_attention(q, k, v, causal=True))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_kernel_and_formula_drop_the_same(backend):
    x = torch.randn(ROWS, SEQ, 16, requires_grad=True)
    mask = dropped(x, key_of())
    with use_backend(backend), dropout_key(key_of()):
        enter_layer(3)
        y = F.dropout(x, 0.3)
    assert torch.equal(y == 0, mask)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad == 0, mask)


@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_code_draws_anew_at_every_call():
    block = TransformerLM(ModelConfig(40, 16, 1, 2, dropout=0.3)).layers[0].train()
    x = torch.randn(ROWS, SEQ, 16)

    def outputs(run):
        for step in (2, 3):
            with dropout_key(key_of(step=step)):
                enter_layer(0)
                yield run(x)

    expected = list(outputs(block))
    found = list(outputs(torch.compile(block, backend="aot_eager", dynamic=False)))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(*expected)


def test_a_batch_of_another_number_of_rows_is_refused():
    with pytest.raises(ShapeError, match=r"4 numbers and x, .* has 3 rows"):
        dropped(torch.ones(3, SEQ, 8), key_of())


def test_without_a_key_torchs_generator_draws():
    x = torch.ones(ROWS, SEQ, 16)
    torch.manual_seed(0)
    before = F.dropout(x, 0.5)
    torch.manual_seed(0)
    dropped(x, key_of())
    assert torch.equal(F.dropout(x, 0.5), before)


def test_layers_that_run_again_drop_the_same_even_after_those_of_other_rows():
    def gradients(checkpointed):
        torch.manual_seed(0)
        model = TransformerLM(ModelConfig(40, 16, 3, 2, dropout=0.3)).train()
        losses = []
        for rows in ([0, 1], [2, 3]):  # as in a pipeline, both forward passes come before the backward passes
            with dropout_key(key_of(rows=rows, seq=8)):
                tokens = torch.arange(16).view(2, 8) + rows[0]
                losses.append(model.loss(tokens, tokens, use_checkpointing=checkpointed))
        for loss in losses:
            loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(map(torch.equal, gradients(True), gradients(False)))
