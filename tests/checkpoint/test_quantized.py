"""Quantised models on disk: what compressed-tensors reads from them, and which folders are refused."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import CheckpointError
from prenorm.layers.linear import Linear
from prenorm.layers.quantized import QuantizedLinear
from prenorm.ops.quantized import dequantize

from ..oracle.inputs import integers, randomise
from .examples import without_manifest

logging.disable_progress_bar()

OPTIONS: tuple[Any, ...] = ({}, {"rope_interleaved": True, "qk_norm": True}, {"tie_embeddings": True, "qkv_bias": True})


def make(**options):
    config = ModelConfig(61, 64, 2, 4, **{"num_kv_heads": 2, "d_ff": 96, "max_seq_len": 64} | options)
    return randomise(TransformerLM(config)).eval()


@pytest.fixture
def folder(tmp_path):
    make().quantize("int4").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore")  # of pydantic and torch, about what compressed-tensors does
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("options", OPTIONS, ids=["llama", "qwen3, interleaved", "qwen2, tied"])
@torch.no_grad()
def test_transformers_opens_the_same_weights(tmp_path, options, kind):
    """It multiplies with the weights in floats, so ours does too here: activations are not rounded."""
    model, ids = make(**options).quantize(kind), integers(2, 20, limit=61)
    model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = TransformerLM.from_pretrained(tmp_path)
    for name, module in list(ours.named_modules()):
        if isinstance(module, QuantizedLinear):
            linear = Linear(module.in_features, module.out_features)
            linear.weight.data, linear.bias = dequantize(*module.unpacked()), module.bias
            ours.set_submodule(name, linear)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("width", [64, 44])  # 44: no multiple of 32, nor of 8
@torch.no_grad()
def test_it_comes_back_as_it_was(tmp_path, kind, width):
    model, ids = make(d_ff=width).quantize(kind), integers(2, 20, limit=61)
    model.save_pretrained(tmp_path)
    again = TransformerLM.from_pretrained(tmp_path)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert torch.equal(again(ids), model(ids))


SIZES = {
    "tiny": 2e-38,
    "small": 2e-5,
    "one": 1.0,
    "huge": 1e4,
}  # of weights; "huge" times 2e33 more where the dtype has room


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_scale_comes_back_bit_for_bit(tmp_path, dtype, kind, size):
    model, ids = make().to(dtype), integers(2, 20, limit=61)
    for layer in model.layers:
        layer.norm2.weight.mul_(1000)  # small weights behind a large norm: nothing is small outside
        weight = layer.ffn.up_proj.weight
        weight.copy_(torch.randn(weight.shape).to(torch.float64) * SIZES[size])
        weight[3] = 0
        weight[4] = weight[4] * 1e-3  # in float16, these are subnormal or zero where the others are small
    if size == "huge" and dtype != torch.float16:
        weight.mul_(2e33)
    model.quantize(kind).save_pretrained(tmp_path)
    again, state = TransformerLM.from_pretrained(tmp_path), model.state_dict()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor.view(torch.uint8), state[name].view(torch.uint8)), name
    assert again.layers[0].ffn.up_proj.dtype == dtype
    torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=0, equal_nan=True)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@torch.no_grad()
def test_a_folder_with_scales_in_float16_still_opens(tmp_path):
    """As folders of float16 models were written before."""
    model, ids = make().half().quantize("int8"), integers(2, 20, limit=61)
    model.save_pretrained(tmp_path)

    def narrow(tensors):
        for name in tensors:
            if name.endswith(".weight_scale"):
                tensors[name] = tensors[name].half()

    rewrite(tmp_path, narrow)
    assert torch.equal(TransformerLM.from_pretrained(tmp_path)(ids), model(ids))


@torch.no_grad()
def test_an_interleaved_model_comes_back_half_split_with_the_same_logits(tmp_path):
    model, ids = make(rope_interleaved=True).quantize("int8"), integers(2, 20, limit=61)
    model.save_pretrained(tmp_path)
    again = TransformerLM.from_pretrained(tmp_path)
    assert not again.config.rope_interleaved
    torch.testing.assert_close(again(ids), model(ids), rtol=0.05, atol=0.05)  # a rounding may go the other way
    assert (again(ids) - model(ids)).square().mean().sqrt() < 0.01 * model(ids).square().mean().sqrt()


def test_the_file_is_as_small_as_its_bits(tmp_path):
    sizes = {}
    for kind in (None, "int8", "int4"):
        model = make(d_ff=512).bfloat16()
        if kind:
            model.quantize(kind)
        model.save_pretrained(tmp_path)
        sizes[kind] = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    embedding = 61 * 64 * 2
    assert 16 / 9.2 < (sizes[None] - embedding) / (sizes["int8"] - embedding) < 16 / 8.5
    assert 16 / 5.2 < (sizes[None] - embedding) / (sizes["int4"] - embedding) < 16 / 4.5


def edit(folder, change):
    path = without_manifest(folder) / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


OTHERS = {
    "another method": lambda fields: fields["quantization_config"].update(quant_method="gptq"),
    "another group": lambda fields: fields["quantization_config"]["config_groups"]["group_0"]["weights"].update(
        group_size=128
    ),
    "rounded activations": lambda fields: fields["quantization_config"]["config_groups"]["group_0"].update(
        input_activations={"num_bits": 8}
    ),
    "no object": lambda fields: fields.update(quantization_config="int8"),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_quantization_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(CheckpointError, match=r"quantization_config must be what save_pretrained writes .* open the"):
        TransformerLM.from_pretrained(folder)


def test_how_the_weights_are_quantised_is_named_first(folder):
    settings = {"bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": ["lm_head"] * 40}
    edit(folder, lambda fields: fields.update(quantization_config={**settings, "quant_method": "bitsandbytes"}))
    with pytest.raises(CheckpointError, match='the weights are quantised by "bitsandbytes" in another way') as refused:
        TransformerLM.from_pretrained(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_numbers_without_a_word_of_them_are_refused(folder):
    edit(folder, lambda fields: fields.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"missing: .*q_proj\.weight .*unexpected: .*lm_head\.weight_packed"):
        TransformerLM.from_pretrained(folder)


def rewrite(folder, change):
    path = without_manifest(folder) / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


NAME = "model.layers.1.mlp.up_proj"
WRONG = {
    "of another shape": (
        lambda tensors: tensors.update({f"{NAME}.weight_shape": torch.tensor([96, 32])}),
        r"model.layers.1.mlp.up_proj must have the shape \(96, 64\), but \S+up_proj.weight_shape says \[96, 32\]",
    ),
    "with finer scales": (
        lambda tensors: tensors.update({f"{NAME}.weight_scale": tensors[f"{NAME}.weight_scale"] * 1.001}),
        "model.layers.1.mlp.up_proj.weight_scale must hold finite bfloat16 numbers",
    ),
    "with infinite scales": (
        lambda tensors: tensors.update({f"{NAME}.weight_scale": tensors[f"{NAME}.weight_scale"] / 0}),
        "model.layers.1.mlp.up_proj.weight_scale must hold finite bfloat16 numbers",
    ),
    "in another dtype": (
        lambda tensors: tensors.update({f"{NAME}.weight_packed": tensors[f"{NAME}.weight_packed"].long()}),
        "up_proj.weight_packed I64",
    ),
    "of another width": (
        lambda tensors: tensors.update({f"{NAME}.weight_packed": tensors[f"{NAME}.weight_packed"][:, :4].clone()}),
        r"up_proj.weight_packed \(96, 4\) instead of \(96, 8\)",
    ),
    "without scales": (lambda tensors: tensors.pop(f"{NAME}.weight_scale"), "missing: .*up_proj.weight_scale"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_numbers_that_do_not_fit_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        TransformerLM.from_pretrained(folder)
