"""GPT-2 and GPT-NeoX: LayerNorm, biases, two matrices; learned positions, or a quarter of each head rotated."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...config import ModelConfig
from ...family import Family
from ...validation import check_flag, check_size
from ..files import IN_THE_FILE, json_text
from ..names import Naming
from ..rope import SCALING_KEYS, Dialect, rope_to_hugging_face
from .layout import Known, Layout, activation_of, biases, check_head_dim, flag, name_of_activation


def _gpt2(known: Known) -> dict[str, Any]:
    check_head_dim(known, "n_embd", "n_head")
    for key in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx"):
        check_flag(key, known[key], spelling=IN_THE_FILE)
    if known["n_inner"] is not None:
        check_size("n_inner", known["n_inner"], spelling=IN_THE_FILE)
    return {
        "d_ff": 4 * known["n_embd"] if known["n_inner"] is None else known["n_inner"],
        "qkv_bias": True,
        "o_bias": True,
        "norm": "layer",
        "activation": activation_of(known, "activation_function"),
        "gated": False,
        "ffn_bias": True,
        "learned_positions": True,
        "attention_scale": None if known["scale_attn_weights"] else 1.0,
        "attention_scale_by_layer": known["scale_attn_by_inverse_layer_idx"],
    }


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    family = config.family or Family()
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": name_of_activation(family.activation),
        "layer_norm_epsilon": float(config.eps),
        "scale_attn_weights": family.attention_scale is None,
        "scale_attn_by_inverse_layer_idx": family.attention_scale_by_layer,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _no_rotation(fields: Mapping[str, Any]) -> Iterator[str]:
    for key in (*SCALING_KEYS, "rope_theta"):
        if fields.get(key):
            yield f"{key} must be null or absent, not {json_text(fields[key])}: positions are learned"


def _gpt_neox(known: Known) -> dict[str, Any]:
    check_head_dim(known)
    return {
        **biases(known),
        "norm": "layer",
        "residual": "parallel_two_norms" if flag(known, "use_parallel_residual") else "pre",
        "activation": activation_of(known),
        "gated": False,
        "ffn_bias": True,
    }


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    family = config.family or Family()
    rope = rope_to_hugging_face(config.rope_theta, config.rope_scaling)
    share = (config.head_dim if family.rotary_dim is None else family.rotary_dim) / config.head_dim
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": name_of_activation(family.activation),
        "layer_norm_eps": float(config.eps),
        "use_parallel_residual": family.residual != "pre",
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "rotary_pct": share,
        "rotary_emb_base": rope["rope_theta"],
        "rope_parameters": {**rope["rope_parameters"], "partial_rotary_factor": share},
    }


_GPT2_NAMING = Naming(
    parts={
        **{"norm1": "ln_1", "attn.o_proj": "attn.c_proj"},
        **{"norm2": "ln_2", "ffn.up_proj": "mlp.c_fc", "ffn.down_proj": "mlp.c_proj"},
    },
    fused={"attn.c_attn": ("attn.q_proj", "attn.k_proj", "attn.v_proj")},
    outside={
        **{"embedding": "transformer.wte", "positions.embedding": "transformer.wpe", "layers": "transformer.h"},
        **{"final_norm": "transformer.ln_f", "lm_head": "lm_head"},
    },
    transposed=True,
    ignored=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # who may attend to whom, as old versions stored it
)
_GPT_NEOX_NAMING = Naming(
    parts={
        **{"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attn.o_proj": "attention.dense"},
        **{"ffn.up_proj": "mlp.dense_h_to_4h", "ffn.down_proj": "mlp.dense_4h_to_h"},
    },
    fused={"attention.query_key_value": ("attn.q_proj", "attn.k_proj", "attn.v_proj")},
    outside={
        **{"embedding": "gpt_neox.embed_in", "positions.embedding": "", "layers": "gpt_neox.layers"},
        **{"final_norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
    },
    by_head=True,
    ignored=r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)

LAYOUTS = {
    "gpt2": Layout(
        architecture="GPT2LMHeadModel",
        keys={
            "n_positions": 1024,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": True,
            "eos_token_id": 50256,
            # The class does not read the older name of n_positions, nor, for text, what heads of other tasks have; and
            # reorder_and_upcast_attn is another order of the same sums.
            **dict.fromkeys(("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj")),
            **dict.fromkeys(("summary_activation", "summary_first_dropout", "summary_proj_to_labels")),
        },
        read=_gpt2,
        harmless={"n_special": (0,), "predict_special_tokens": (True, False)},  # of the first releases
        never_null=("n_positions",),
        eps_key="layer_norm_epsilon",
        rope=None,
        foreign_in_rope=_no_rotation,
        naming=_GPT2_NAMING,
        own={
            **{"hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer"},
            **{"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"},
        },
        write=_write_gpt2,
    ),
    "gpt_neox": Layout(
        architecture="GPTNeoXForCausalLM",
        keys={
            "max_position_embeddings": 2048,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "rotary_pct": None,
            "rotary_emb_base": None,
            "use_parallel_residual": True,
            "attention_bias": True,
            "eos_token_id": 2,
        },
        read=_gpt_neox,
        never_null=("rotary_pct", "rotary_emb_base"),
        eps_key="layer_norm_eps",
        rope=Dialect(partial=0.25, theta_key="rotary_emb_base", share_key="rotary_pct"),
        naming=_GPT_NEOX_NAMING,
        other_namings=(_GPT_NEOX_NAMING._replace(outside={**_GPT_NEOX_NAMING.outside, "lm_head": "lm_head"}),),
        write=_write_gpt_neox,
    ),
}
