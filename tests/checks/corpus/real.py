"""Right blocks of real packages, each behind a small class with the usual constructor; absent packages are left out."""

from importlib.util import find_spec

from .editing import Example

HUGGING_FACE = '''"""One layer of a Hugging Face model, with the mask and the rotations that its model would hand it."""

import torch
from torch import nn
from transformers.models.{model}.configuration_{model} import {name}Config
from transformers.models.{model}.modeling_{model} import {name}DecoderLayer, {name}RotaryEmbedding


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, num_kv_heads=None, max_seq_len=2048, rope_theta=10000.0, eps=1e-6):
        super().__init__()
        head_dim = d_model // num_heads
        config = {name}Config(
            hidden_size=d_model,
            intermediate_size=d_ff,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads or num_heads,
            head_dim=head_dim,
            max_position_embeddings=max_seq_len,
            rms_norm_eps=eps,
            rope_parameters={{"rope_type": "default", "rope_theta": rope_theta}},
            {more}
        )
        config._attn_implementation = "eager"
        self.layer = {name}DecoderLayer(config, layer_idx=0)
        self.rotary = {name}RotaryEmbedding(config)

    def forward(self, x, token_positions=None):
        seq = x.shape[-2]
        if token_positions is None:
            token_positions = torch.arange(seq, device=x.device)
        flat = x.reshape(-1, seq, x.shape[-1])
        positions = token_positions.expand(x.shape[:-1]).reshape(flat.shape[:2])
        mask = torch.full((1, 1, seq, seq), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        y = self.layer(
            flat, attention_mask={mask}, position_ids=positions, position_embeddings=self.rotary(flat, positions)
        )
        return (y[0] if isinstance(y, tuple) else y).view(x.shape)
'''

PRENORM = '''"""This package's own block."""

from prenorm import TransformerBlock


class Block(TransformerBlock):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-6, device=None, dtype=None
    ):
        super().__init__(
            d_model, num_heads, d_ff, max_seq_len, rope_theta, eps, device=device, dtype=dtype, {options}
        )
'''

X_TRANSFORMERS = '''"""One layer of x-transformers with RMSNorm, rotary positions and SwiGLU; it has no eps."""

import torch
from torch import nn
from x_transformers.x_transformers import AttentionLayers


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, num_kv_heads=None):
        super().__init__()
        self.layers = AttentionLayers(
            dim=d_model,
            depth=1,
            heads=num_heads,
            attn_dim_head=d_model // num_heads,
            attn_kv_heads=num_kv_heads or num_heads,
            causal={causal},
            use_rmsnorm=True,
            norm_add_unit_offset={offset},
            pre_norm_has_final_norm=False,
            rotary_pos_emb=True,
            rotary_emb_dim=d_model // num_heads,
            ff_glu=True,
            ff_swish=True,
            ff_no_bias=True,
            ff_mult=(d_ff + 0.5) / d_model,
            verbose=False,
        )

    def forward(self, x, token_positions=None):
        flat = x.reshape(-1, *x.shape[-2:])
        if token_positions is not None:
            token_positions = token_positions.expand(x.shape[:-1]).reshape(flat.shape[:2])
        return self.layers(flat, pos=token_positions).view(x.shape)
'''

LITGPT = '''"""One block of litgpt, configured as a Llama."""

import torch
from litgpt.config import Config
from litgpt.model import Block as LitBlock
from litgpt.model import build_rope_cache
from torch import nn


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, num_kv_heads=None, max_seq_len=2048, rope_theta=10000, eps=1e-6):
        super().__init__()
        config = Config(
            block_size=max_seq_len,
            n_embd=d_model,
            n_head=num_heads,
            head_size=d_model // num_heads,
            n_query_groups=num_kv_heads or num_heads,
            rotary_percentage=1.0,
            rope_base=rope_theta,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=eps,
            mlp_class_name="LLaMAMLP",
            intermediate_size=d_ff,
        )
        self.block = LitBlock(config, block_idx=0)
        cos, sin = build_rope_cache(max_seq_len, config.rope_n_elem, base=rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        flat = x.reshape(-1, *x.shape[-2:])
        positions = token_positions.expand(x.shape[:-1]).reshape(flat.shape[:2])
        return self.block(flat, self.cos[positions], self.sin[positions]).view(x.shape)
'''

MODELS = {
    "llama": ("Llama", "attention_bias=False,"),
    "mistral": ("Mistral", "sliding_window=None,"),
    "qwen2": ("Qwen2", "use_sliding_window=False,"),
    "qwen3": ("Qwen3", "use_sliding_window=False,"),
    "gemma": ("Gemma", 'hidden_act="silu",'),  # the maths of its layer but for the activation; its norm is 1 + weight
    "phi3": ("Phi3", "sliding_window=None,"),
    "granite": ("Granite", "attention_multiplier=head_dim**-0.5,"),
    "smollm3": ("SmolLM3", "use_sliding_window=False,"),
    "helium": ("Helium", "attention_bias=False,"),  # neighbouring features are paired
}

OWN = {
    "default": "",
    "causal": "causal=True",
    "half_split_causal": "causal=True, rope_interleaved=False",
    "grouped": "num_kv_heads=num_heads // 2",
    "qk_norm_and_bias": "qk_norm=True, qkv_bias=True, rope_interleaved=False",
    "dropout": "dropout=0.1, causal=True",
}


def _example(package: str, variant: str, source: str) -> Example:
    return Example(f"{package}/right_{variant}", source, "Block", frozenset(), package)


RIGHT = [_example("prenorm", variant, PRENORM.format(options=options)) for variant, options in OWN.items()]
if find_spec("transformers"):
    RIGHT += [
        _example("transformers", model, HUGGING_FACE.format(model=model, name=name, more=more, mask="mask"))
        for model, (name, more) in MODELS.items()
    ]
    RIGHT.append(
        _example(
            "transformers",
            "llama_both_ways",
            HUGGING_FACE.format(model="llama", name="Llama", more=MODELS["llama"][1], mask="0 * mask.nan_to_num()"),
        )
    )
if find_spec("x_transformers"):
    RIGHT += [
        _example("x_transformers", "encoder", X_TRANSFORMERS.format(causal=False, offset=False)),
        _example("x_transformers", "decoder", X_TRANSFORMERS.format(causal=True, offset=True)),
    ]
if find_spec("litgpt") and find_spec("lightning"):
    RIGHT.append(_example("litgpt", "llama", LITGPT))
