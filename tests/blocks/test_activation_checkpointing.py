"""Less memory and the same outputs, gradients and next random numbers, bit for bit."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from prenorm import ConfigError, ModelConfig, TransformerDecoder, TransformerEncoder, TransformerLM, use_backend

from ..oracle.inputs import integers, mask_of, normal, randomise

LAYERS, D_MODEL, HEADS, SEQ, VOCAB = 3, 8, 2, 6, 11


def inputs(grad=True):
    """x and an encoder's output."""
    return [normal(2, seq, D_MODEL, seed=seq, dtype=torch.float32).requires_grad_(grad) for seq in (SEQ, 5)]


def encoder(**options):
    model = TransformerEncoder(LAYERS, D_MODEL, HEADS, dropout=0.3)
    x, mask = inputs(**options)[0], mask_of(2, 1, 1, SEQ)
    return model, [x], lambda how: model(x, mask, use_checkpointing=how)


def decoder(**options):
    model = TransformerDecoder(LAYERS, D_MODEL, HEADS, dropout=0.3, causal=True)
    given, masks = inputs(**options), {"self_mask": mask_of(SEQ, SEQ), "cross_mask": mask_of(2, 1, 1, 5)}
    return model, given, lambda how: model(*given, use_checkpointing=how, **masks)


def language_model():
    config = ModelConfig(VOCAB, D_MODEL, LAYERS, HEADS, max_seq_len=16, dropout=0.3)
    return TransformerLM(config), integers(2, SEQ + 1, limit=VOCAB)


def loss(**options):
    model, ids = language_model()
    return model, [], lambda how: model.loss(ids[:, :-1], ids[:, 1:], use_checkpointing=how)


def logits(**options):
    model, ids = language_model()
    segment_ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, -1, -1]])
    return model, [], lambda how: model(ids, segment_ids=segment_ids, use_checkpointing=how)


MODELS = {"encoder": encoder, "decoder": decoder, "loss": loss, "logits": logits}
models = pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)


def step(model, given, call, how, autocast=False):
    """The results of a training step: output, gradients, and the state of the random generator."""
    torch.manual_seed(7)
    model.zero_grad()
    for x in given:
        x.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call(how)
    (y * normal(*y.shape, seed=1, dtype=y.dtype)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients |= {f"input {n}": x.grad for n, x in enumerate(given) if x.requires_grad}
    return {"output": y.detach(), **gradients, "random state": torch.get_rng_state()}


def assert_same_bits(actual, wanted):
    assert actual.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(actual[name], wanted[name])] == []


@models
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", [True, 2])
def test_with_dropout_outputs_gradients_and_the_next_random_numbers_keep_their_bits(made, how, autocast):
    model, given, call = made()
    randomise(model).train()
    wanted = step(model, given, call, False, autocast)
    assert all(tensor.float().any() for tensor in wanted.values())
    assert_same_bits(step(model, given, call, how, autocast), wanted)


@models
def test_so_they_do_by_the_plain_formulas_and_where_the_input_needs_no_gradient(made):
    model, given, call = made(grad=False)
    randomise(model).train()
    with use_backend("reference"):
        assert_same_bits(step(model, given, call, True), step(model, given, call, False))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch.compile, of itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # and so is this
def test_so_they_do_when_a_block_is_compiled():
    model, given, call = loss()
    randomise(model).train()
    compiler = CompileCounterWithBackend("aot_eager")
    model.layers[1].compile(backend=compiler)
    assert_same_bits(step(model, given, call, True), step(model, given, call, False))
    assert compiler.frame_count > 0


# What runs twice


def runs(model, call, how):
    """How often each block runs in a forward pass, and in a backward pass if there is one."""
    counts = [0] * len(model.layers)

    def counting(number):
        def count(*_):
            counts[number] += 1

        return count

    handles = [block.register_forward_pre_hook(counting(number)) for number, block in enumerate(model.layers)]
    y = call(how)
    if y.requires_grad:
        y.sum().backward()
    for handle in handles:
        handle.remove()
    return counts


@models
@pytest.mark.parametrize(
    ("how", "twice"),
    [(False, []), (0, []), (True, [0, 1, 2]), (1, [0, 1, 2]), (2, [1]), (3, [2]), (4, [])],
)
def test_every_kth_block_runs_again_in_the_backward_pass(made, how, twice):
    model, _, call = made()
    assert runs(model.train(), call, how) == [1 + (number in twice) for number in range(LAYERS)]


@models
def test_nothing_runs_twice_in_evaluation_or_without_gradients(made):
    model, _, call = made()
    assert runs(model.eval(), call, True) == [1] * LAYERS
    model.train()
    with torch.no_grad():
        assert runs(model, call, True) == [1] * LAYERS


def test_nothing_runs_twice_with_a_cache():
    model, (x, encoded), _ = decoder()
    cache = model.make_cache(encoded, SEQ)
    assert runs(model.train(), lambda how: model(x, cache=cache, use_checkpointing=how), True) == [1] * LAYERS
    model, ids = language_model()
    cache = model.make_cache(2, SEQ + 1)
    assert runs(model.train(), lambda how: model(ids, cache=cache, use_checkpointing=how), True) == [1] * LAYERS


def test_encoder_and_decoder_do_it_unless_told_and_the_language_model_when_told():
    model, (x,), _ = encoder()
    assert runs(model, lambda _: model(x), None) == [2] * LAYERS
    model, given, _ = decoder()
    assert runs(model, lambda _: model(*given), None) == [2] * LAYERS
    model, ids = language_model()
    assert runs(model, lambda _: model(ids), None) == [1] * LAYERS
    assert runs(model, lambda _: model.loss(ids, ids), None) == [1] * LAYERS


# What is kept


def bytes_kept(model, call, how):
    """Bytes kept for the backward pass: every storage once, without parameters."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call(how)
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in owned)


def one_of_24(make):
    """A model of 24 layers, and a function that calls it."""
    x, encoded = (normal(2, 32, 32, seed=seed, dtype=torch.float32) for seed in (0, 1))
    given = {TransformerEncoder: (x,), TransformerDecoder: (x, encoded), TransformerLM: (integers(2, 32, limit=VOCAB),)}
    if make is TransformerLM:
        model = make(ModelConfig(VOCAB, 32, 24, 4, max_seq_len=32, dropout=0.1))
        return model, lambda how: model.hidden(*given[make], use_checkpointing=how)
    model = make(24, 32, 4)
    return model, lambda how: model(*given[make], use_checkpointing=how)


@pytest.mark.parametrize("make", [TransformerEncoder, TransformerDecoder, TransformerLM])
def test_at_24_layers_a_twelfth_or_less_is_kept(make):
    model, call = one_of_24(make)
    whole, less = bytes_kept(model, call, False), bytes_kept(model, call, True)
    inputs_of_blocks = 24 * 2 * 32 * 32 * 4
    assert less >= inputs_of_blocks  # they are counted, each of them
    assert whole >= 12 * less


def test_every_second_block_keeps_about_half():
    model = TransformerEncoder(4, D_MODEL, HEADS)
    x = inputs()[0]

    def call(how):
        return model(x, use_checkpointing=how)

    kept = [bytes_kept(model, call, how) for how in (False, 2, True)]
    assert kept[0] > kept[1] > kept[2]
    assert kept[1] == pytest.approx((kept[0] + kept[2]) / 2, rel=0.1)


@models
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", [-1, 1.5, "yes", None])
def test_what_is_neither_a_switch_nor_a_number_of_blocks_is_refused(made, how, training):
    model, _, call = made()
    model.train(training)
    message = rf"use_checkpointing must be True, False, or an integer k for every k-th block, not {how!r}"
    with pytest.raises(ConfigError, match=message):
        call(how)
