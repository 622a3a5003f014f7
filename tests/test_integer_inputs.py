"""Integer tensors in public calls: all accept the same dtypes and refuse others with the same message."""

from typing import Any

import numpy as np
import pytest
import torch

import prenorm.functional as F
from prenorm import (
    ConfigError,
    Embedding,
    EncoderDecoder,
    EncoderDecoderConfig,
    KVCache,
    ModelConfig,
    PrenormError,
    RangeError,
    RotaryEmbedding,
    SelfAttention,
    ShapeError,
    TransformerBlock,
    TransformerDecoderBlock,
    TransformerEncoder,
    TransformerLM,
    pad,
)
from prenorm.layers.positions import LearnedPositions, SinusoidalPositions

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

LM = TransformerLM(ModelConfig(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_seq_len=16)).eval()
SEQ2SEQ = EncoderDecoder(
    EncoderDecoderConfig(vocab_size=11, d_model=8, num_layers=1, num_heads=2, max_seq_len=16)
).eval()
BLOCK = TransformerBlock(8, 2, 16, causal=True)
X, IDS = torch.randn(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, 6]])
ZEROS = torch.zeros_like(IDS)
WEIGHTS = {f"{part}_proj_weight": torch.randn(8, 8) for part in "qkvo"}


def rewound(counts):
    cache = LM.make_cache(2, 8)
    LM(IDS, cache=cache)
    cache.rewind(counts)
    return cache.lengths


def decoded(target_ids=ZEROS, segment_ids=None):
    return SEQ2SEQ.decode(target_ids, cache=SEQ2SEQ.make_cache(IDS, 8), segment_ids=segment_ids)


# What messages call it: a call that takes it, and a good value.
INPUTS: dict[str, Any] = {
    "Embedding": ("token ids", Embedding(11, 8), IDS),
    "LM": ("token ids", LM, IDS),
    "LM, cached": ("token ids", lambda ids: LM(ids, cache=LM.make_cache(2, 8)), IDS),
    "LM, hidden": ("token ids", LM.hidden, IDS),
    "LM, loss": ("token ids", lambda ids: LM.loss(ids, IDS), IDS),
    "LM, targets": ("targets", lambda targets: LM.loss(IDS, targets), IDS),
    "LM, ignored targets": ("targets", lambda targets: LM.loss(IDS, targets), torch.tensor([[1, -100, 3]] * 2)),
    "LM, targets with segments": ("targets", lambda targets: LM.loss(IDS, targets, segment_ids=ZEROS - 1), IDS),
    "LM, positions": ("token_positions", lambda positions: LM(IDS, positions), IDS),
    "LM, segments": ("segment_ids", lambda ids: LM(IDS, segment_ids=ids), ZEROS),
    "LM, segments of a loss": ("segment_ids", lambda ids: LM.loss(IDS, IDS, segment_ids=ids), ZEROS),
    "LM, cached segments": ("segment_ids", lambda ids: LM(IDS, cache=LM.make_cache(2, 8), segment_ids=ids), ZEROS),
    "cache, rewind": ("counts", rewound, torch.tensor([1, 2])),
    "layer's cache, rewind": ("counts", lambda counts: BLOCK.make_cache(2, 8).rewind(counts), torch.tensor([0, 0])),
    "block, positions": ("token_positions", lambda positions: BLOCK(X, positions), IDS),
    "block, segments": ("segment_ids", lambda ids: BLOCK(X, segment_ids=ids), ZEROS),
    "attention, segments": ("segment_ids", lambda ids: SelfAttention(8, 2)(X, segment_ids=ids), ZEROS),
    "encoder, segments": ("segment_ids", lambda ids: TransformerEncoder(1, 8, 2)(X, segment_ids=ids), ZEROS),
    "decoder block, segments": ("segment_ids", lambda ids: TransformerDecoderBlock(8, 2)(X, X, segment_ids=ids), ZEROS),
    "rotary, positions": ("token_positions", lambda positions: RotaryEmbedding(8, 16)(X, positions), IDS),
    "learned positions": ("token_positions", lambda positions: LearnedPositions(8, 16)(X, positions), IDS),
    "fixed positions": ("token_positions", lambda positions: SinusoidalPositions(8, 16)(X, positions), IDS),
    "source ids": ("source_ids", lambda ids: SEQ2SEQ(ids, IDS), IDS),
    "target ids": ("target_ids", lambda ids: SEQ2SEQ(IDS, ids), IDS),
    "source ids, encode": ("source_ids", SEQ2SEQ.encode, IDS),
    "source ids, cache": ("source_ids", lambda ids: SEQ2SEQ.make_cache(ids, 8), IDS),
    "target ids, decode": ("target_ids", decoded, IDS),
    "source segments": ("source_segment_ids", lambda ids: SEQ2SEQ(IDS, IDS, source_segment_ids=ids), ZEROS),
    "target segments": ("target_segment_ids", lambda ids: SEQ2SEQ(IDS, IDS, target_segment_ids=ids), ZEROS),
    "target segments, decode": ("target_segment_ids", lambda ids: decoded(segment_ids=ids), ZEROS),
    "encoder-decoder, targets": ("targets", lambda targets: SEQ2SEQ.loss(IDS, IDS, targets), IDS),
    "F.cross_entropy": ("targets", lambda targets: F.cross_entropy(X, targets), IDS),
    "F.linear_cross_entropy": ("targets", lambda t: F.linear_cross_entropy(X, torch.ones(11, 8), t), IDS),
    "F.rope": ("token_positions", lambda positions: F.rope(X, positions), IDS),
    "F.sinusoidal_positions": ("token_positions", lambda positions: F.sinusoidal_positions(positions, 8), IDS),
    "F.multihead": (
        "token_positions",
        lambda positions: F.multihead_self_attention_with_rope(
            d_model=8, num_heads=2, max_seq_len=16, theta=1e4, **WEIGHTS, in_features=X, token_positions=positions
        ),
        IDS,
    ),
}
OTHERS = [torch.int8, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
OTHERS += [torch.bool, torch.float32, torch.bfloat16, torch.complex64]


def numbers(result):
    return result if isinstance(result, torch.Tensor) else torch.zeros(0)  # of what gives a cache, or nothing


@pytest.mark.parametrize("given", INPUTS)
def test_int32_is_as_good_as_int64(given):
    _, call, good = INPUTS[given]
    torch.manual_seed(0)
    wanted = numbers(call(good))
    torch.manual_seed(0)
    assert torch.equal(numbers(call(good.int())), wanted)


@pytest.mark.parametrize("given", INPUTS)
def test_every_other_dtype_is_refused_in_the_same_words(given):
    name, call, good = INPUTS[given]
    for dtype in OTHERS:
        words = f"^{name} must be int64 or int32, but they are {dtype}; "
        way_out = (
            r"torch.where\(mask"
            if "segment" in name and dtype.is_floating_point | (dtype == torch.bool)
            else r".long\(\)"
        )
        with pytest.raises(ShapeError, match=words + way_out):
            call(good.to(dtype))


@pytest.mark.parametrize("given", INPUTS)
def test_what_is_no_plain_tensor_is_refused_by_name(given):
    name, call, good = INPUTS[given]
    for other in (good.tolist(), good.numpy()):
        with pytest.raises(
            ShapeError, match=f"^{name} must be a tensor of int64 or int32, but they are a (list|ndarray)"
        ):
            call(other)
    with pytest.raises(ShapeError, match=f"^{name} must be a dense tensor, but they are sparse_coo"):
        call(good.to_sparse())
    with pytest.raises(ShapeError, match=f"^{name} must be a dense tensor, but they are nested"):
        call(torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged))


def test_ids_may_be_made_under_inference_mode():
    with torch.inference_mode():
        ids = IDS + 0
    with torch.no_grad():  # autograd itself cannot keep them
        assert torch.equal(LM(ids), LM(IDS))


def test_ids_on_another_device_are_refused_with_both_devices():
    with pytest.raises(ShapeError, match=r"token ids must be on cpu, but they are on meta; .to\('cpu'\) moves them"):
        LM(IDS.to("meta"))


# Numbers that decoding reads in Python: lists, arrays, tensors.
FORMS: dict[str, Any] = {
    "lists": lambda ids: ids,
    "tensors": lambda ids: [torch.tensor(row) for row in ids],
    "a tensor": torch.tensor,
    "uint16 as tokens lie on disks": lambda ids: np.array(ids, np.uint16),
    "an array": np.array,
    "lists of NumPy's numbers": lambda ids: [[np.int32(one) for one in row] for row in ids],
    "lists of small tensors": lambda ids: [list(torch.tensor(row)) for row in ids],
}
PROMPTS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("form", FORMS)
def test_ids_in_any_form_give_the_same_tokens(form):
    make = FORMS[form]
    wanted = LM.generate(PROMPTS, max_new_tokens=5, temperature=0)
    ended = [[row[0]] for row in wanted]
    assert LM.generate(make(PROMPTS), max_new_tokens=5, temperature=0) == wanted
    assert SEQ2SEQ.generate(make(PROMPTS), make(PROMPTS), max_new_tokens=3, temperature=0) == SEQ2SEQ.generate(
        PROMPTS, PROMPTS, max_new_tokens=3, temperature=0
    )
    assert pad(make(PROMPTS))[0].tolist() == PROMPTS
    assert LM.generate(PROMPTS, max_new_tokens=5, temperature=0, stop=make(ended)) == [[one] for (one,) in ended]
    for eos in (ended[0][0], make([ended[0]])[0], np.int64(ended[0][0]), torch.tensor(ended[0][0])):
        assert LM.generate(PROMPTS[:1], max_new_tokens=5, temperature=0, eos_token_id=eos) == [ended[0]]


@pytest.mark.parametrize("form", [np.array([1, 2, 3]), torch.tensor([1, 2, 3])])
def test_one_row_is_one_prompt(form):
    assert pad(form)[0].tolist() == [[1, 2, 3]]


BAD_IDS = [[[True, False]], [[1.0]], np.array([[1.5]]), np.array([[True]]), torch.tensor([[True]]), torch.ones(1, 2)]
BAD_IDS += [
    [[torch.tensor(True)]],
    [[np.True_]],
    [["1"]],
    np.array([["1"]]),
    [[None]],
    torch.ones(1, 1, 1).long(),
    "ab",
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=str)
def test_what_is_no_row_of_ids_is_refused_by_name(bad):
    calls: dict[str, Any] = {
        "prompt": LM.generate,
        "source": SEQ2SEQ.generate,
        "row": pad,
        "stop sequence": lambda bad: LM.generate([[1]], max_new_tokens=4, stop=bad),
    }
    for name, call in calls.items():
        with pytest.raises(ConfigError, match=rf"^{name}( \d)? must be"):
            call(bad)
    with pytest.raises(ConfigError, match=r"^eos_token_id must be"):
        LM.generate([[1]], max_new_tokens=4, eos_token_id=bad[0] if not isinstance(bad, str) else bad)


COUNTS = {
    "max_new_tokens": lambda count: LM.generate([[1]], max_new_tokens=count, seed=0),
    "top_k": lambda count: LM.generate([[1]], max_new_tokens=2, top_k=count, seed=0),
    "draft_tokens": lambda count: LM.generate([[1]], max_new_tokens=3, draft=LM, draft_tokens=count, seed=0),
    "seed": lambda count: LM.generate([[1]], max_new_tokens=3, seed=count),
    "batch_size": lambda count: LM.make_cache(count, 8).lengths.tolist(),
    "max_seq_len": lambda count: LM.make_cache(1, count)[0].slots,
    "rewind": lambda count: LM.make_cache(1, 8, rewind=count)[0].max_rewind,
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_may_be_numpys_and_nothing_but_integers(name):
    call = COUNTS[name]
    for count in (np.int64(3), np.uint16(3), torch.tensor(3), np.array(3)):
        assert call(count) == call(3)
    for bad in (True, np.True_, torch.tensor(True), 3.0, np.float64(3), torch.tensor(3.0), "3", [3.0], -1, 2**80):
        with pytest.raises(ConfigError, match=f"^{name} must be an integer"):
            call(bad)


def test_seeds_may_be_an_array():
    wanted = LM.generate(PROMPTS, max_new_tokens=4, seed=[5, 6])
    for seeds in (np.array([5, 6]), torch.tensor([5, 6]), (np.int64(5), 6)):
        assert LM.generate(PROMPTS, max_new_tokens=4, seed=seeds) == wanted


@pytest.mark.parametrize("mask", [torch.ones(3, 3), torch.ones(3, 3, dtype=torch.int64), torch.zeros(3, 3).half()])
def test_a_mask_that_is_not_boolean_is_refused(mask):
    calls = [
        lambda: BLOCK(X, mask=mask),
        lambda: TransformerEncoder(1, 8, 2)(X, mask),
        lambda: TransformerDecoderBlock(8, 2)(X, X, mask),
        lambda: TransformerDecoderBlock(8, 2)(X, X, None, mask),
        lambda: F.scaled_dot_product_attention(X, X, X, mask),
    ]
    for call in calls:
        with pytest.raises(ShapeError, match=r"mask must be boolean \(True = may attend\), but it is"):
            call()


def test_targets_outside_the_vocabulary_are_refused_and_ignored_ones_are_not():
    for dtype in (torch.int64, torch.int32):
        for loss in (lambda t: LM.loss(IDS, t), lambda t: SEQ2SEQ.loss(IDS, IDS, t)):
            assert loss(torch.full_like(IDS, -100, dtype=dtype)) == 0
            for wrong in (-1, 11, -101):
                with pytest.raises(RangeError, match=r"targets must be in \[0, 11\) or -100"):
                    loss(torch.full_like(IDS, wrong, dtype=dtype))
            with pytest.raises(PrenormError, match="one target a row"):
                loss(IDS[:, :2].to(dtype))


def test_a_cache_is_made_of_the_same_layers_in_any_form():
    sizes: Any = (np.int64(2), np.int64(8))
    assert isinstance(LM.make_cache(*sizes), KVCache)
