"""What arguments mean, told by their names."""

import pytest

from prenorm.checks.subject.child.meanings import ARGUMENTS, meaning_of

SIZES = ("d_model", "num_heads", "d_ff", "max_seq_len", "num_kv_heads", "head_dim", "rope_theta")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("image_num_heads", "num_heads"),
        ("image_head_dim", "head_dim"),
        ("qk_rope_head_dim", None),
        ("embeddings_dims", "d_model"),
        ("feed_forward_multiplier", "expansion"),
        ("mlp_ratio", "expansion"),
        ("init_cutoff_factor", None),
        ("word_embed_proj_dim", "d_model"),
        ("token_embedding", "d_model"),
        ("embedding_multiplier", None),
        ("pos_embed_type", None),
        ("pos_embed", None),
        ("rotary_embedding", None),
        ("dropout_type", None),
        ("attn_dropout_prob", "dropout"),
        ("ffn_dim_multiplier", "expansion"),
        ("activation_type", None),
        ("hidden_act_fn", "activation"),
        ("intermediate_size_mlp", "d_ff"),
        ("filter_size", "d_ff"),
        ("lm_inter_dim", "d_ff"),
        ("lm_hidden_dim", "d_model"),
        ("lm_n_heads", "num_heads"),
        ("lm_n_kv_heads", "num_kv_heads"),
        ("dim_heads", "head_dim"),
        ("n_embd_per_head", "head_dim"),
        ("multiple_of", "multiple"),
        ("sliding_window", "window"),
        ("attn_window_size", "window"),
        ("context_window", "window"),
        ("max_batch_size", "max_batch"),
        ("size", "d_model"),
        ("patch_size", None),
        ("kernel_size", None),
    ],
)
def test_parts_of_a_name_tell_what_it_means(name: str, meaning: str | None) -> None:
    assert meaning_of(name, loosely=True) == meaning


@pytest.mark.parametrize(
    "end", ["type", "kind", "mode", "name", "init", "std", "ratio", "rate", "prob", "scale", "factor"]
)
def test_what_a_name_ends_in_may_be_no_size(end: str) -> None:
    """Of every name in the table, alone, in capitals, and of a part of a model."""
    aliases = [alias for meaning in SIZES for alias in ARGUMENTS[meaning].split()]
    names = [f"{before}{alias}_{end}" for alias in aliases for before in ("", "attn_", "model_")]
    sizes = {name: meaning for name in names if (meaning := meaning_of(name, loosely=True)) in SIZES}
    assert sizes == {}
    assert meaning_of(f"HIDDEN_SIZE_{end}".upper(), loosely=True) not in SIZES


@pytest.mark.parametrize("end", ["type", "kind", "mode", "name"])
def test_what_a_name_ends_in_may_be_no_number(end: str) -> None:
    names = [f"{alias}_{end}" for meaning in ARGUMENTS for alias in ARGUMENTS[meaning].split()]
    assert {meaning_of(name, loosely=True) for name in names} <= {None}
