"""Options of a family's record: each changes the outputs, and fast decoding does not apply."""

import dataclasses

import pytest
import torch

from prenorm import ConfigError, ModelConfig, RangeError, RopeScaling, TransformerLM
from prenorm.family import Family
from prenorm.generation.native_decode.decoder import NativeDecoder
from prenorm.kernels.cpu import native

from ..oracle.inputs import integers, randomise

VOCAB, SEQ = 61, 24
SIZES = {"num_heads": 4, "d_ff": 96, "max_seq_len": 64, "head_dim": 32, "qk_norm": True}

# Every switch of the record, alone; rotated and windows of two layers.
SWITCHES = {
    "residual": "sandwich",
    "norm": "layer",
    "activation": "gelu",
    "ffn_bias": True,
    "gated": False,
    "one_plus_norms": True,
    "wide_qk_norm": True,
    "per_head_qk_norm": True,
    "learned_positions": True,
    "rotary_dim": 16,
    "windows": (0, 5),
    "rotated": (True, False),
    "window_rope_theta": 50.0,
    "window_rope_scaling": RopeScaling("linear", 4.0),
    "clip_qkv": 0.5,
    "attention_scale": 0.05,
    "attention_scale_by_layer": True,
    "attention_softcap": 1.5,
    "residual_scale": 0.3,
    "embedding_scale": 3.0,
    "logit_divisor": 4.0,
    "logit_softcap": 0.7,
}
SCALINGS = {
    "dynamic": RopeScaling("dynamic", 4.0, original_max_seq_len=8),
    "yarn": RopeScaling("yarn", 4.0, original_max_seq_len=8),
    "longrope": RopeScaling(
        "longrope", 4.0, original_max_seq_len=8, short_factors=(1.0,) * 16, long_factors=(3.0,) * 16
    ),
}


def model(family, **options):
    config = ModelConfig(VOCAB, 64, 2, **{**SIZES, **options}, family=family)
    return randomise(TransformerLM(config)).eval()


def record(name):
    needed = {"window_rope_theta": {"windows": (0, 5)}, "window_rope_scaling": {"windows": (0, 5)}}.get(name, {})
    if name == "per_head_qk_norm":
        needed = {"norm": "layer"}
    if name == "window_rope_scaling":
        needed["window_rope_theta"] = 50.0
    return Family(**needed, **{name: SWITCHES[name]}), Family(**needed)


def test_every_switch_of_the_record_is_tested():
    assert list(SWITCHES) == [field.name for field in dataclasses.fields(Family)]


def test_a_record_that_adds_nothing_changes_nothing():
    plain, with_record = model(None), model(Family())
    with_record.load_state_dict(plain.state_dict())
    ids = integers(2, SEQ, limit=VOCAB)
    torch.testing.assert_close(with_record(ids), plain(ids))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_changes_the_logits(name):
    family, without = record(name)
    on, off, ids = model(family), model(without), integers(2, SEQ, limit=VOCAB)
    shared = off.state_dict()
    alike = [part for part, own in on.state_dict().items() if part in shared and own.shape == shared[part].shape]
    on.load_state_dict({part: shared[part] for part in alike}, strict=False)
    with torch.no_grad():
        assert (on(ids) - off(ids)).abs().max() > 1e-3


@pytest.mark.sampled(4)
@pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")
@pytest.mark.parametrize("name", [*SWITCHES, *SCALINGS])
def test_steps_of_decoding_give_the_models_logits(name):
    made = model(None, rope_scaling=SCALINGS[name]) if name in SCALINGS else model(record(name)[0])
    steps, ids = made._decoder(), integers(2, SEQ, limit=VOCAB)
    assert isinstance(steps, NativeDecoder) == (name in ("yarn", "windows"))  # in cosines and sines, or in the cache
    assert isinstance(model(None)._decoder(), NativeDecoder)
    with torch.inference_mode():
        wanted, cache = made(ids), made.make_cache(2, SEQ)
        logits = [steps(ids[:, :10], segment_ids=None, cache=cache)]
        logits += [steps(ids[:, place : place + 1], segment_ids=None, cache=cache) for place in range(10, SEQ)]
    torch.testing.assert_close(torch.stack(logits, 1), wanted[:, 9:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["residual", "logit_softcap", "windows", "learned_positions", "per_head_qk_norm"])
def test_generated_tokens_are_the_most_likely_of_the_logits(name):
    made, prompt = model(record(name)[0]), integers(9, limit=VOCAB).tolist()
    (reply,) = made.generate([prompt], max_new_tokens=8, temperature=0)
    with torch.no_grad():
        assert reply == made(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize(
    ("kind", "switch"), [("int8", "residual"), ("int4", "residual"), ("int8", "learned_positions")]
)
def test_a_quantised_model_is_saved_and_opens(kind, switch, tmp_path):
    made = model(record(switch)[0], num_heads=2)
    ids = integers(2, SEQ, limit=VOCAB)
    with torch.inference_mode():
        wanted = made.quantize(kind)(ids)
        with pytest.warns(UserWarning, match="was saved as model_type 'prenorm'"):
            made.save_pretrained(tmp_path)
        assert torch.equal(TransformerLM.from_pretrained(tmp_path)(ids), wanted)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_model_of_our_own_with_a_record_is_saved_and_opens(name, tmp_path):
    made = model(record(name)[0], rope_interleaved=name != "learned_positions")
    ids = integers(2, SEQ, limit=VOCAB)
    if name in ("activation", "ffn_bias"):
        made = model(record(name)[0], qk_norm=False)
        made.save_pretrained(tmp_path)
    else:
        with pytest.warns(UserWarning, match="was saved as model_type 'prenorm'"):
            made.save_pretrained(tmp_path)
    opened = TransformerLM.from_pretrained(tmp_path)
    assert opened.config == made.config
    with torch.no_grad():
        assert torch.equal(opened(ids), made(ids))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_depend_on_length_take_the_rows_own_or_the_room_of_the_cache(kind):
    made = model(None, rope_scaling=SCALINGS[kind]).double()
    ids = integers(1, 20, limit=VOCAB)
    with torch.no_grad():
        short, long = made(ids[:, :8]), made(ids)
        assert (long[:, :8] - short).abs().max() > 1e-3  # the exception to causality
        for room, wanted in ((8, short), (20, long[:, :8])):
            cache = made.make_cache(1, room)
            steps = torch.cat([made(ids[:, place : place + 1], cache=cache) for place in range(8)], 1)
            torch.testing.assert_close(steps, wanted)
        # Packed, each document has its own length; so has each row that is padded.
        packed = made(torch.cat((ids[:, :8], ids), 1), segment_ids=torch.tensor([[0] * 8 + [1] * 20]))
        torch.testing.assert_close(packed, torch.cat((short, long), 1))
        padded = torch.cat((torch.zeros(1, 12, dtype=torch.int64), ids[:, :8]), 1)
        marks = torch.tensor([[-1] * 12 + [0] * 8, [0] * 20])
        both = made(torch.cat((padded, ids)), segment_ids=marks)
        torch.testing.assert_close(both[0, 12:], short[0])
        torch.testing.assert_close(both[1], long[0])


BAD = [
    (
        {"residual": "none"},
        "family.residual must be one of pre, post, sandwich, parallel, parallel_two_norms, not 'none'",
    ),
    ({"activation": "mish"}, "family.activation must be one of silu, .*, not 'mish'"),
    ({"ffn_bias": 1}, "family.ffn_bias must be True or False, not 1"),
    ({"rotary_dim": 3}, "family.rotary_dim must be even"),
    ({"rotary_dim": 64}, "family.rotary_dim must be at most head_dim, but 64 is more than 32"),
    ({"windows": (1, 2, 3)}, "family.windows must have one entry for each of 2 layers, not 3"),
    ({"windows": (1, -2)}, "each of family.windows must be an integer of at least 0, not -2"),
    ({"rotated": (True, 1)}, "each of family.rotated must be True or False, not 1"),
    ({"attention_softcap": 0.0}, "family.attention_softcap must be greater than 0, not 0.0"),
    ({"logit_divisor": float("nan")}, "family.logit_divisor must be a finite number"),
    ({"window_rope_scaling": RopeScaling("linear", 2.0)}, "needs family.window_rope_theta"),
    ({"per_head_qk_norm": True}, "per_head_qk_norm is a LayerNorm that .* needs family.norm 'layer'"),
    ({"per_head_qk_norm": True, "norm": "layer", "wide_qk_norm": True}, "without family.wide_qk_norm"),
    ({"per_head_qk_norm": True, "norm": "layer", "one_plus_norms": True}, "or family.one_plus_norms"),
    ({"learned_positions": True, "rotary_dim": 16}, "rotates nothing, so family.rotary_dim must be left out"),
    ({"learned_positions": True, "rotated": (True, False)}, "rotates nothing, so family.rotated must be left out"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
@pytest.mark.usefixtures("shapes_unchecked")
def test_records_that_no_model_can_have_are_refused_with_the_rule(fields, message):
    with pytest.raises(ConfigError, match=message):
        model(Family(**fields))


@pytest.mark.parametrize("kind", [{"wide_qk_norm": True}, {"per_head_qk_norm": True, "norm": "layer"}])
def test_how_queries_and_keys_are_normed_is_refused_where_they_are_not(kind):
    with pytest.raises(ConfigError, match="says how queries and keys are normed, so it needs qk_norm=True"):
        model(Family(**kind), qk_norm=False)


@pytest.mark.parametrize(
    "setting", [{"rope_theta": 5.0}, {"rope_interleaved": True}, {"rope_scaling": SCALINGS["yarn"]}]
)
def test_settings_of_a_rotation_are_refused_where_positions_are_learned(setting):
    with pytest.raises(ConfigError, match=f"rotates nothing, so {next(iter(setting))} must be left out"):
        model(Family(learned_positions=True), **setting)


def test_heads_of_an_odd_size_may_have_learned_positions():
    made, ids = model(Family(learned_positions=True), head_dim=7), integers(2, SEQ, limit=VOCAB)
    with torch.no_grad():
        logits = made(ids)
        assert (made(ids.flip(1)).flip(1) - logits).abs().max() > 1e-3
        with pytest.raises(RangeError, match="positions"):
            made(integers(1, 65, limit=VOCAB))


def test_a_familys_logits_are_finished_even_where_all_its_parts_are_ours():
    made, plain = model(record("logit_softcap")[0]), model(None)
    made.embedding, made.layers, made.final_norm = plain.embedding, plain.layers, plain.final_norm
    assert not isinstance(made._decoder(), NativeDecoder)


def test_a_record_goes_to_json_and_back_unchanged():
    config = model(record("window_rope_scaling")[0]).config
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="family has no field named softcap"):
        ModelConfig.from_dict({**config.to_dict(), "family": {"softcap": 1.0}})


def test_a_hook_on_an_attention_without_rotation_changes_nothing():
    """With documents the model hands positions to all blocks, those that rotate nothing too."""
    family = Family(norm="layer", gated=False, activation="gelu", learned_positions=True)
    config = ModelConfig(vocab_size=11, d_model=16, num_layers=1, num_heads=2, max_seq_len=8, family=family)
    model, ids, segments = TransformerLM(config), torch.arange(8), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    plain = model(ids, segment_ids=segments)
    model.layers[0].attn.register_forward_pre_hook(lambda *_: None)
    assert torch.equal(model(ids, segment_ids=segments), plain)
