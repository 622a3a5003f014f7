import dataclasses
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from prenorm import ModelConfig, TransformerLM
from prenorm.costs import activations, architecture
from prenorm.costs.activations import saved
from prenorm.costs.architecture import Architecture, architecture_of
from prenorm.costs.sheet import cost_sheet
from prenorm.family import Activation, Family
from prenorm.kernels import sdpa
from prenorm.kernels.cpu import attention, silu_gate
from prenorm.ops import cross_entropy

from .examples import FAMILIES, family_config, odd_configs

HAS_KERNELS = pytest.mark.skipif(
    bool(attention.unavailable_reason()), reason=attention.unavailable_reason() or "there are kernels"
)
SHAPES = [(1, 1), (2, 2), (3, 17), (1, 64), (2, 65), (1, 257)]


class PyTorchAlone(TorchDispatchMode):
    """A dispatch mode, under which none of prenorm's kernels runs, only PyTorch's ops and its fused attention."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def hooked(call, parameters):
    """Bytes of all storages that autograd saves while `call` runs, except those of parameters."""
    held = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # or another one could get its place in memory
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values())


def hooked_loss(config, batch, context, dtype, every, mode):
    model = TransformerLM(config).train()
    ids = torch.zeros(batch, context, dtype=torch.int64)
    with mode, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return hooked(lambda: model.loss(ids, ids.clone(), use_checkpointing=every), model.parameters())


@pytest.mark.sampled(2)
@HAS_KERNELS
@pytest.mark.parametrize("kernels", ["amd_cpu", "other_cpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_cpu_kernels_save_what_is_counted(dtype, kernels, shapes_unchecked, monkeypatch):
    if kernels == "other_cpu":
        monkeypatch.setattr(attention, "REASON", "as if this were another processor")
    for number, config in enumerate(odd_configs(30, dropout=True)):
        (batch, context), every = SHAPES[number % len(SHAPES)], number % 3
        found = hooked_loss(config, batch, context, dtype, every, nullcontext())
        parts = saved(architecture_of(config), batch, context, dtype=dtype, kernels=kernels, every=every)
        assert found == sum(parts.values()), (config, batch, context, every)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorchs_ops_save_what_is_counted(dtype, shapes_unchecked):
    for number, config in enumerate(odd_configs(36)):
        (batch, context), every = SHAPES[number % len(SHAPES)], number % 3
        found = hooked_loss(config, batch, context, dtype, every, PyTorchAlone())
        parts = saved(architecture_of(config), batch, context, dtype=dtype, kernels="pytorch", every=every)
        assert found == sum(parts.values()), (config, batch, context, every)


# Of the families that are counted, each kind once: what their blocks have, layer by layer.
COUNTED = {
    "gpt2": family_config("gpt2"),
    "gpt_neox": family_config("gpt_neox"),
    "parallel": family_config("smollm3", family=Family(residual="parallel", norm="layer_scale", rotary_dim=4)),
    "scales": family_config("yarn", qkv_bias=True, family=Family(residual_scale=0.3, attention_scale=0.2)),
    "windows": family_config(
        "exaone4", qk_norm=False, family=Family(windows=(0, 5), window_rope_theta=30.0, norm="layer_bare")
    ),
    "rotated": family_config("smollm3", num_kv_heads=4, head_dim=16),
    "embedding": family_config("smollm3", tie_embeddings=True, qk_norm=True, family=Family(embedding_scale=3.0)),
}
COUNTED |= {
    name: family_config(name)
    for name in ("gemma2", "gemma3", "olmo2", "exaone4", "granite", "glm4", "olmo", "nemotron", "cohere", "stablelm")
}
COUNTED |= {
    name: family_config("smollm3", **{"qk_norm": True, **options}, family=Family(**record))
    for name, options, record in (
        ("post, LayerNorm", {}, {"residual": "post", "norm": "layer"}),
        ("sandwich, no weights", {}, {"residual": "sandwich", "norm": "layer_bare", "rotated": (False, True)}),
        ("1 + weight, LayerNorm", {}, {"one_plus_norms": True, "norm": "layer_scale", "wide_qk_norm": True}),
        ("norms over a head, unrotated", {}, {"rotated": (False, True), "clip_qkv": 2.0}),
        ("norms over all heads, unrotated", {}, {"rotated": (False, True), "wide_qk_norm": True}),
        ("norms of each head, unrotated", {}, {"rotated": (False, True), "per_head_qk_norm": True, "norm": "layer"}),
        ("soft cap, one head", {"num_heads": 1, "num_kv_heads": 1}, {"attention_softcap": 2.0, "windows": (5, 0)}),
        ("soft cap, unrotated", {}, {"attention_softcap": 2.0, "attention_scale": 0.2, "rotated": (False, True)}),
        ("logits, tied", {"tie_embeddings": True}, {"logit_softcap": 2.0}),
        ("logits divided", {}, {"logit_divisor": 2.0}),
    )
}
COUNTED |= {
    f"{activation}, gated={gated}": family_config("yarn", family=Family(activation=activation, gated=gated))
    for activation in get_args(Activation)
    for gated in (True, False)
}


@HAS_KERNELS
@pytest.mark.parametrize("name", COUNTED)
def test_families_save_what_is_counted(name, shapes_unchecked):
    number = list(COUNTED).index(name)
    dtypes: Any = ("float32", "bfloat16")
    kernels: Any
    for kernels, mode, dtype in (
        ("pytorch", PyTorchAlone(), dtypes[number % 2]),
        ("amd_cpu", nullcontext(), dtypes[1 - number % 2]),
    ):
        (batch, context), every = SHAPES[1:][number % 5], number % 3
        config = dataclasses.replace(COUNTED[name], dropout=0.1 if number % 4 < 2 and kernels == "amd_cpu" else 0.0)
        found = hooked_loss(config, batch, context, dtype, every, mode)
        parts = saved(architecture_of(config), batch, context, dtype=dtype, kernels=kernels, every=every)
        assert found == sum(parts.values()), (dtype, kernels, batch, context, every)
        assert not architecture_of(config).uncounted


@HAS_KERNELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["exaone4", "gemma2"])
def test_a_single_token_with_dropout_saves_what_is_counted(name, dtype, shapes_unchecked):
    config = dataclasses.replace(family_config(name), dropout=0.1)
    found = hooked_loss(config, 2, 1, dtype, 0, nullcontext())
    assert found == sum(saved(architecture_of(config), 2, 1, dtype=dtype, kernels="amd_cpu").values())


def test_logits_that_are_finished_save_what_is_counted_in_several_chunks(shapes_unchecked, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 29 * 5)
    monkeypatch.setattr(activations, "CHUNK_ELEMENTS", 29 * 5)
    config = family_config("gemma2")
    found = hooked_loss(config, 2, 17, "bfloat16", 0, PyTorchAlone())
    assert found == sum(saved(architecture_of(config), 2, 17, dtype="bfloat16", kernels="pytorch").values())


def test_what_is_counted_on_one_device_alone_is_named():
    assert architecture_of(family_config("gemma2")).one_device == (
        *("residual", "one_plus_norms", "attention_softcap", "logit_softcap"),
    )
    assert architecture_of(family_config("olmo2")).one_device == ("residual", "wide_qk_norm")
    assert architecture_of(family_config("stablelm")).one_device == ("per_head_qk_norm",)
    layer_norms = family_config("smollm3", qk_norm=True, family=Family(norm="layer"))
    assert architecture_of(layer_norms).one_device == ("qk_norm",)
    assert not architecture_of(family_config("gpt_neox")).one_device


def test_a_new_switch_is_named_until_it_is_counted(monkeypatch):
    assert not any(architecture_of(family_config(name)).uncounted for name in FAMILIES)
    monkeypatch.setattr(architecture, "_ONE_DEVICE", ())
    model = architecture_of(family_config("gemma2"))
    assert model.uncounted == ("one_plus_norms", "attention_softcap", "logit_softcap")
    sheet = cost_sheet(model, context=8, memory=10**9)
    assert sheet["not_counted"] == [*model.uncounted]
    assert sheet["peak_bytes"] is sheet["saved_bytes"]["pytorch"] is sheet["fits"]["training"] is None
    assert sheet["fits"]["decoding"]["batch"] > 0


def test_the_limits_of_the_kernels_have_not_moved():
    assert (attention.WIDTH, attention.MAX_HEAD_DIM) == (activations.ATTENTION_WIDTH, activations.ATTENTION_MOST_DIM)
    assert attention.MIN_SCORES == activations.ATTENTION_LEAST_SCORES
    assert silu_gate.MIN_NUMEL == activations.SILU_GATE_LEAST
    assert sdpa.SHORT == activations.SHORT_BFLOAT16
    assert all(cross_entropy.chunk_rows(vocab) == activations.chunk_rows(vocab) for vocab in (50, 32_000, 2**18, 2**24))


@HAS_KERNELS
def test_the_limits_of_the_kernels_are_those_of_the_kernels():
    for d_ff, head_dim, context in [(1023, 16, 63), (1024, 16, 64), (1024, 256, 64), (8, 272, 64), (8, 24, 256)]:
        config = ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, head_dim=head_dim, d_ff=d_ff)
        for dtype in ("float32", "bfloat16"):
            found = hooked_loss(config, 1, context, dtype, 0, nullcontext())
            parts = saved(architecture_of(config), 1, context, dtype=dtype, kernels="amd_cpu")
            assert found == sum(parts.values()), (config, context, dtype)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_of_another_kind_saves_what_is_counted(parallel):
    """GPT-2's block, written out: LayerNorm, biases, GELU, no rotation; optionally with both sublayers on one norm."""
    model = Architecture(
        **{"vocab_size": 7, "d_model": 24, "num_layers": 1, "num_heads": 3, "num_kv_heads": 3, "head_dim": 8},
        **{"d_ff": 40, "max_seq_len": 50, "gated": False, "norm": "layer", "norm_vectors": 2, "parallel": parallel},
        **{"norms": 1 if parallel else 2, "activation": "gelu"},
        **{"learned_positions": True, "qkv_bias": True, "o_bias": True, "ffn_bias": True},
    )
    norms = [torch.nn.LayerNorm(24) for _ in range(1 if parallel else 2)]
    q, k, v, o = (torch.nn.Linear(24, 24) for _ in range(4))
    up, down = torch.nn.Linear(24, 40), torch.nn.Linear(40, 24)
    x, result = torch.randn(2, 17, 24, requires_grad=True), []

    def run():
        y = norms[0](x)
        heads = (p(y).unflatten(-1, (3, 8)).transpose(1, 2) for p in (q, k, v))
        attended = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        middle = x + o(attended)
        result.append(middle + down(functional.gelu(up(y if parallel else norms[1](middle)))))

    parameters = [p for module in (*norms, q, k, v, o, up, down) for p in module.parameters()]
    counted = saved(model, 2, 17, dtype="float32", kernels="pytorch")
    # The embedding, the last norm and the loss are not in this block.
    outside = counted["token_ids"] + counted["positions"] + counted["loss"] + 2 * 17 * (24 + 2) * 4
    assert hooked(run, parameters) == sum(counted.values()) - outside
