"""The encoder-decoder compared with a tiny random Hugging Face Pegasus: same weights, same outputs.

It is pre-norm with final norms, biases, the exact GELU, embeddings times sqrt(d_model) and one tied matrix, as ours.
Its positions are sines in the first half of the features and cosines in the second, where ours, and the paper's,
alternate. So they are carried over as learned positions, or every weight with its features in our order.
"""

import functools

import pytest
import torch
from transformers import PegasusConfig, PegasusForConditionalGeneration

from prenorm import EncoderDecoder, EncoderDecoderConfig

from ..oracle import models
from ..oracle.inputs import integers, segments, weights_of
from ..oracle.tolerance import array, assert_accurate, assert_exact, assert_rounding_alone, rms

VOCAB, D_MODEL, HEADS, SOURCE_SEQ, SEQ, ROOM = 13, 16, 4, 9, 7, 24
SIZES = {
    "vocab_size": VOCAB,
    "d_model": D_MODEL,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": ROOM,
    "activation_function": "gelu",
    "scale_embedding": True,
    "decoder_start_token_id": 3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "forced_eos_token_id": None,
    "attn_implementation": "eager",
}
CONFIG = EncoderDecoderConfig(
    VOCAB,
    D_MODEL,
    num_layers=2,
    num_heads=HEADS,
    num_decoder_layers=3,
    d_ff=24,
    max_seq_len=ROOM,
    positions="learned",
    start_token_id=3,
)
NAMES = {
    "embedding": "model.shared",
    "source_positions.embedding": "model.encoder.embed_positions",
    "target_positions.embedding": "model.decoder.embed_positions",
    "encoder.": "model.encoder.",
    "decoder.": "model.decoder.",
    "encoder.final_norm": "model.encoder.layer_norm",
    "decoder.final_norm": "model.decoder.layer_norm",
    "norm1": "self_attn_layer_norm",
    "attn": "self_attn",
    "self_attn": "self_attn",
    "cross_attn": "encoder_attn",
    "o_proj": "out_proj",
    "ffn.up_proj": "fc1",
    "ffn.down_proj": "fc2",
}


def theirs(name):
    """Hugging Face's name of one of prenorm's parameters."""
    if "layers" not in name:
        module, kind = name.rsplit(".", 1)
        return f"{NAMES[module]}.{kind}"
    side, _, layer, rest = name.split(".", 3)
    last = "final_layer_norm"
    norms = {"norm1": NAMES["norm1"], "norm2": "encoder_attn_layer_norm", "norm3": last}
    parts = (norms if side == "decoder" else {**norms, "norm2": last}) | NAMES
    module, kind = rest.rsplit(".", 1)
    module = parts.get(module) or ".".join(parts.get(part, part) for part in module.split("."))
    return f"model.{side}.layers.{layer}.{module}.{kind}"


@functools.cache
def both():
    """Pegasus with random weights and its own position table, and a prenorm model with the same, both in eval mode."""
    witness = PegasusForConditionalGeneration(PegasusConfig(**SIZES))
    tables = [stack.embed_positions for stack in (witness.model.encoder, witness.model.decoder)]
    generator = torch.Generator().manual_seed(3)
    for parameter in witness.parameters():  # wide enough to say more than one word
        torch.nn.init.normal_(parameter.data, std=0.7, generator=generator)
    for table in tables:
        table.weight.copy_(table.create_weight())
    assert not witness.final_logits_bias.any()
    weights = witness.state_dict()
    ours = EncoderDecoder(CONFIG)
    ours.load_state_dict({name: weights[theirs(name)] for name in ours.state_dict()})
    # Every parameter of theirs has its place in ours: no table is loaded twice, none is left out.
    assert {theirs(name) for name in ours.state_dict()} == {name for name, _ in witness.named_parameters()}
    return witness.eval(), ours.eval()


def of(dtype):
    witness, ours = both()
    return witness.to(dtype), ours.to(dtype)


def inputs():
    return integers(3, SOURCE_SEQ, limit=VOCAB), integers(3, SEQ, limit=VOCAB, seed=1)


RAGGED = {
    "source_segment_ids": torch.stack([segments([(0, n), (-1, SOURCE_SEQ - n)]) for n in (9, 4, 6)]),
    "target_segment_ids": torch.stack([segments([(0, n), (-1, SEQ - n)]) for n in (3, 7, 5)]),
}
given = pytest.mark.parametrize("given", [{}, RAGGED], ids=["whole", "ragged"])


def masks(given):
    """The same as keyword arguments of Pegasus."""
    sides = {"source_segment_ids": "attention_mask", "target_segment_ids": "decoder_attention_mask"}
    return {sides[name]: (row >= 0).long() for name, row in given.items()}


def real(given):
    return given.get("target_segment_ids", torch.zeros(3, SEQ)) >= 0


def oracle(model, source, target, given):
    options = {name: row.numpy() for name, row in given.items()}
    sizes = {"num_layers": 2, "num_decoder_layers": 3, "num_heads": HEADS}
    return models.encoder_decoder(weights_of(model), source.numpy(), target.numpy(), **sizes, **options)


@given
def test_encoder_outputs_and_logits_are_theirs(given):
    source, target = inputs()
    places, read = real(given), given.get("source_segment_ids", torch.zeros(3, SOURCE_SEQ)) >= 0
    witness, ours = of(torch.float32)
    wanted = oracle(ours, source, target, given)[places.numpy()]
    with torch.no_grad():
        out = witness(source, decoder_input_ids=target, **masks(given))
        assert_accurate(ours(source, target, **given)[places], wanted, out.logits[places])
        witness, ours = of(torch.float64)
        exact = witness(source, decoder_input_ids=target, **masks(given))
        assert_exact(ours(source, target, **given)[places], array(exact.logits[places]))
        encoded = ours.encode(source, segment_ids=given.get("source_segment_ids"))
        assert_exact(encoded[read], array(exact.encoder_last_hidden_state[read]))
        assert_exact(exact.logits[places], wanted)


def joined(gradients, exact):
    """All gradients in one vector, each normalised: an RMS over few elements would depend on chance."""
    return torch.cat([gradient.flatten() / rms(wanted) for gradient, wanted in zip(gradients, exact, strict=True)])


@given
def test_the_loss_and_the_gradients_of_every_weight_are_theirs(given):
    source, target = inputs()
    targets = integers(3, SEQ, limit=VOCAB, seed=2)
    labels = targets.masked_fill(~real(given), -100)  # what our segment ids say by themselves
    # Their table of positions is no parameter to train. The biases of keys change nothing: softmax takes them out.
    names = [name for name, _ in both()[1].named_parameters() if "positions" not in name and "k_proj.bias" not in name]

    def losses_and_gradients(dtype):
        witness, ours = of(dtype)
        losses = (
            ours.loss(source, target, targets, **given),
            witness(source, decoder_input_ids=target, labels=labels, **masks(given)).loss,
        )
        parameters = [
            [ours.get_parameter(name) for name in names],
            [witness.get_parameter(theirs(name)) for name in names],
        ]
        return losses, [torch.autograd.grad(*one) for one in zip(losses, parameters, strict=True)]

    exact_losses, (mine, exact) = losses_and_gradients(torch.float64)
    assert_exact(exact_losses[0], exact_losses[1].item())
    for actual, wanted in zip(mine, exact, strict=True):
        assert_exact(actual, array(wanted))
    exact = [array(gradient) for gradient in exact]
    losses, (actual, plain) = losses_and_gradients(torch.float32)
    assert_rounding_alone(losses[0], exact_losses[1].item(), torch.float32)
    assert_accurate(joined(actual, exact), array(joined(map(torch.from_numpy, exact), exact)), joined(plain, exact))


def test_greedy_tokens_of_ragged_sources_are_theirs():
    sources = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    padded = torch.tensor([row + [0] * (5 - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in sources])
    witness, ours = of(torch.float64)
    tokens = witness.generate(padded, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=1)
    replies = ours.generate(sources, max_new_tokens=20, temperature=0)
    assert [[3, *reply] for reply in replies] == tokens.tolist()
    assert all(len(set(reply)) > 1 for reply in replies)
    prompt = torch.tensor([[5, 1, 2]] * 3)
    tokens = witness.generate(
        padded, attention_mask=mask, decoder_input_ids=prompt, max_new_tokens=12, do_sample=False, num_beams=1
    )
    replies = ours.generate(sources, prompt, max_new_tokens=12, temperature=0)
    assert replies == [row[-12:] for row in tokens.tolist()]


def test_with_its_features_in_our_order_our_sinusoids_are_its_positions():
    source, target = inputs()
    witness, learned = of(torch.float64)
    ours = EncoderDecoder(
        EncoderDecoderConfig(**{**CONFIG.to_dict(), "positions": "sinusoidal"}), dtype=torch.float64
    ).eval()
    order = torch.arange(D_MODEL).view(2, -1).t().flatten()  # sine, cosine, sine, cosine, ...
    reads = ("embedding.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "up_proj.weight")
    weights = {}
    for name, weight in learned.state_dict().items():
        if name.endswith(reads):
            weights[name] = weight[:, order]
        elif name.endswith(("o_proj.weight", "o_proj.bias", "down_proj.weight", "down_proj.bias")) or "norm" in name:
            weights[name] = weight[order]
        else:
            weights[name] = weight
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    logits = witness(source, decoder_input_ids=target).logits
    assert_rounding_alone(ours(source, target), array(logits), torch.float32)  # their table is rounded to float32
