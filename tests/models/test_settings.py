"""What was changed in the modules of a model is not lost in silence when it is saved."""

import pytest
import torch
from torch import nn

from prenorm import (
    CheckpointError,
    EncoderDecoder,
    EncoderDecoderConfig,
    ModelConfig,
    RMSNorm,
    RotaryEmbedding,
    TransformerLM,
)


def make(**options):
    return TransformerLM(ModelConfig(11, 8, 2, 2, max_seq_len=16, **options)).eval()


def other_rope(model):
    model.layers[1].attn.rope = RotaryEmbedding(4, 16, theta=3.0, interleaved=False)


def wider_rope(model):
    for block in model.layers:
        block.attn.rope = RotaryEmbedding(4, 32, interleaved=False)


LOST = {
    "layers.1.attn.window is 3, in the config None": lambda model: setattr(model.layers[1].attn, "window", 3),
    "layers.0.attn.causal is False, in the config True": lambda model: setattr(model.layers[0].attn, "causal", False),
    "final_norm.eps is 0.5, in the config 1e-06": lambda model: setattr(model.final_norm, "eps", 0.5),
    "final_norm.eps is None, in": lambda model: setattr(model, "final_norm", nn.RMSNorm(8)),
    "layers.1.attn.rope.theta is 3.0, in the config 10000.0": other_rope,
    "layers.1.attn.rope.interleaved is True": lambda model: setattr(model.layers[0].attn.rope, "interleaved", True),
    "layers.1.attn.rope is missing": lambda model: setattr(model.layers[1].attn, "rope", None),
}
KEPT = {
    "nothing": lambda model: None,
    "training": lambda model: model.train(),
    "an equal norm": lambda model: setattr(model, "final_norm", RMSNorm(8)),
    "more positions": wider_rope,
    "quantised": lambda model: model.quantize("int8"),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("message", LOST)
def test_a_setting_that_the_config_does_not_have_is_refused(message, tmp_path):
    model = make()
    LOST[message](model)
    with pytest.raises(CheckpointError, match=message):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("change", KEPT)
def test_what_changes_no_result_may_differ(change, tmp_path):
    model = make(dropout=0.1, window=4)
    KEPT[change](model)
    model.save_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert torch.equal(TransformerLM.from_pretrained(tmp_path / "model")(ids), model.eval()(ids))


def test_it_holds_for_an_encoder_decoder(tmp_path):
    model = EncoderDecoder(EncoderDecoderConfig(11, 8, 1, 2))
    model.save_pretrained(tmp_path / "model")
    model.decoder.layers[0].norm1.eps = 0.5
    with pytest.raises(CheckpointError, match=r"decoder.layers.0.norm1.eps is 0.5"):
        model.save_pretrained(tmp_path / "model")
