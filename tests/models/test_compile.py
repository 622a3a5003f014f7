"""Compiled whole, with and without a cache: the same numbers, and few compilations."""

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerLM

from ..oracle.inputs import integers, randomise, segments
from ..oracle.tolerance import array, assert_exact

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch says it of itself
    pytest.mark.usefixtures("shapes_unchecked"),
]

VOCAB = 11
# Batch size and length. A batch of 1 would be one more: torch makes code of its own for sizes of 1.
FIVE = ((2, 5), (3, 7), (2, 4), (4, 40), (5, 3))
OPTIONS = ({"num_layers": 1}, {"window": 6, "num_kv_heads": 1, "qk_norm": True})


def make(dtype=torch.float64, **options):
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 12, "max_seq_len": 64}
    return randomise(TransformerLM(ModelConfig(VOCAB, **{**sizes, **options}), dtype=dtype)).eval()


def compiled(module):
    """The module as one graph, and the counter of its compilations. torch's code generator is left out: it is slow."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(module, fullgraph=True, backend=counter), counter


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_five_sizes_take_two_compilations(options, dtype):
    model = make(dtype, **options)
    fast, counter = compiled(model)
    for batch, seq in FIVE:
        ids = integers(batch, seq, limit=VOCAB)
        with torch.no_grad():
            actual, wanted = fast(ids), model(ids)
        if dtype == torch.float64:
            assert_exact(actual, array(wanted))
    assert counter.frame_count <= 2


@pytest.mark.sampled(4)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("what", ["prompts", "tokens"])
def test_with_a_cache_too(options, what):
    # The first chunk of every batch, or, after a prompt that is not compiled, more tokens than the window, one by one.
    model = make(**options)
    fast, counter = compiled(model)
    for batch, seq in FIVE:
        ids = integers(batch, seq + 9, limit=VOCAB)
        cache = model.make_cache(batch, seq + 9)
        with torch.no_grad():
            first = (fast if what == "prompts" else model)(ids[:, :seq], cache=cache)
            rest = [(model if what == "prompts" else fast)(token, cache=cache) for token in ids[:, seq:].split(1, 1)]
            assert_exact(torch.cat((first, *rest), 1), array(model(ids)))
        assert cache.lengths.tolist() == [seq + 9] * batch
    assert counter.frame_count <= (2 if what == "prompts" else 3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", OPTIONS)
def test_compiled_and_eager_calls_may_take_turns_with_one_cache(options):
    model = make(**options)
    fast, _ = compiled(model)
    ids, cache = integers(2, 30, limit=VOCAB), model.make_cache(2, 30)
    with torch.no_grad():
        pieces = [
            (fast if i % 2 else model)(piece, cache=cache)
            for i, piece in enumerate(ids.split([3, 1, 9, 1, 1, 8, 4, 3], 1))
        ]
        assert_exact(torch.cat(pieces, 1), array(model(ids)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", OPTIONS)
def test_ragged_prompts_and_what_follows_compile_too(options):
    model = make(**options)
    fast, counter = compiled(model)
    row_ids = torch.stack([segments([(-1, 3), (0, 9)]), segments([(0, 5), (-1, 7)])])
    ids, more = integers(2, 12, limit=VOCAB), integers(2, 3, limit=VOCAB, seed=1)
    cache = model.make_cache(2, 20)
    with torch.no_grad():
        prompts = fast(ids, segment_ids=row_ids, cache=cache)
        after = torch.cat([fast(token, cache=cache) for token in more.split(1, 1)], 1)
        for row in range(2):
            real = row_ids[row] >= 0
            whole = model(torch.cat((ids[row, real], more[row])))
            assert_exact(torch.cat((prompts[row, real], after[row])), array(whole))
    assert cache.lengths.tolist() == [12, 8]
    assert counter.frame_count <= 3


def test_ragged_rows_run_as_code_that_torch_generates():
    # The one test here with the code generator: it once lost the name of a number that each layer has.
    model = make()
    fast = torch.compile(model, fullgraph=True)
    row_ids, ids, more = (
        torch.stack([segments([(0, 5)]), segments([(0, 3), (-1, 2)])]),
        *(integers(2, seq, limit=VOCAB, seed=seq) for seq in (5, 1)),
    )
    caches = [model.make_cache(2, 16) for _ in range(2)]
    with torch.no_grad():
        for _ in range(2):
            for given in ((ids, row_ids), (more, None)):
                ours, theirs = (
                    run(given[0], segment_ids=given[1], cache=cache)
                    for run, cache in zip((fast, model), caches, strict=True)
                )
                real = slice(None) if given[1] is None else given[1] >= 0
                assert_exact(ours[real], array(theirs[real]))


def test_a_compiled_call_without_room_is_refused_and_changes_nothing():
    model = make()
    fast, _ = compiled(model)
    ids, cache = integers(2, 6, limit=VOCAB), model.make_cache(2, 5)
    with torch.no_grad():
        fast(ids[:, :4], cache=cache)
        # Traced, our error is torch's, with the place of ours.
        with pytest.raises(Unsupported, match="at most max_seq_len = 5 tokens, but it has 4 and this call adds 2"):
            fast(ids[:, 4:], cache=cache)
        assert_exact(model(ids[:, 4:5], cache=cache), array(model(ids)[:, 4:5]))


@pytest.mark.long
def test_an_encoder_decoder_decodes_compiled_as_well():
    config = EncoderDecoderConfig(VOCAB, d_model=8, num_layers=2, num_heads=2, max_seq_len=32)
    model = randomise(EncoderDecoder(config, dtype=torch.float64)).eval()
    fast, counter = compiled(model.decode)
    for batch, seq in FIVE[:3]:
        source, target = integers(batch, 6, limit=VOCAB), integers(batch, seq, limit=VOCAB, seed=1)
        with torch.no_grad():
            cache = model.make_cache(source, 20)
            pieces = [model.decode(target[:, :2], cache=cache)]
            pieces += [fast(token, cache=cache) for token in target[:, 2:].split(1, 1)]
            assert_exact(torch.cat(pieces, 1), array(model(source, target)))
    assert counter.frame_count <= 3
