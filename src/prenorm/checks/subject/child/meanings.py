"""What an argument means, told by its name: `n_embd` is d_model. Standard library alone: it serves on both sides."""

import re
from collections.abc import Iterable

SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len")
ARGUMENTS = {
    "d_model": "d_model dim hidden_size embed_dim n_embd model_dim emb_dim embedding_dim width dmodel d emb_size "
    "embed_size embedding_size n_embed d_embed d_embd dim_model input_dim in_dim features hidden_dimension emb "
    "model_size token_dim feature_dim num_hiddens embeddings_dim embedding_dimension "
    "dim_embed dim_embedding channels n_channels n_state d_in idim n_feat n_factors hidden_units enc_dim dec_dim "
    "layer_width input_size",
    "num_heads": "num_heads n_heads n_head nhead heads num_attention_heads h nheads num_head n_attention_heads "
    "num_query_heads n_query_heads head_count num_q_heads n_q_heads attention_heads n_attn_heads num_attn_heads "
    "attn_heads",
    "d_ff": "d_ff intermediate_size dim_feedforward ffn_dim ff_dim mlp_dim d_hidden hidden_dim inner_dim d_mlp dff "
    "ffn_hidden_size ffn_hidden_dim ff_size feed_forward_dim feedforward_dim mlp_hidden_dim mlp_hidden_size n_inner "
    "dim_ff ffn_size hidden_features d_inner ff_hidden_dim mlp_size d_feedforward feed_forward_size n_ff "
    "intermediate_dim ffn_inter_dim inter_dim n_hidden ff_d d_ffn ffwd_dim hidden ff inner dim_hidden dim_mlp d_hid "
    "ffn_num_hiddens ffn_embed_dim dim_feed_forward ff_hidden ff_width ffn_width mlp_width feedforward_size "
    "intermediate hid_dim hide_dim pf_dim filter_size",
    "max_seq_len": "max_seq_len max_len max_seq_length max_position_embeddings context_length block_size n_ctx "
    "max_positions max_length seq_len context_size max_position max_context_length max_sequence_length ctx_len "
    "sequence_length seq_length max_context max_seqlen context_len window_size_max n_positions max_T seqlen",
    "rope_theta": "rope_theta theta rope_base base rotary_base rotary_emb_base rope_freq_base theta_base",
    "eps": "eps norm_eps rms_norm_eps layer_norm_eps epsilon rms_eps norm_epsilon layer_norm_epsilon",
    "num_kv_heads": "num_kv_heads n_kv_heads num_key_value_heads kv_heads n_kv_head num_kv n_query_groups "
    "num_query_groups n_kv_groups num_kv_groups n_local_heads",
    "head_dim": "head_dim head_size d_head dim_head dim_heads d_k d_v d_q dim_per_head kv_channels head_width",
    "causal": "causal is_causal",
    "dropout": "dropout dropout_p p_drop dropout_rate p_dropout drop drop_rate",
    "device": "device",
    "dtype": "dtype",
}
"""What arguments of constructors are called. Ours first."""

OF_A_MODEL = r"^((image|text|vision|encoder|decoder|model|attn|attention|lm|llm|language)_)?"
_LOOSE = {
    "dropout": r"dropout|_pdrop|drop_(rate|prob|path)|_drop$",
    "eps": r"(^|_)eps(ilon)?$",
    "layer": r"^(layer|block|depth)_?(idx|id|index|num|number|no|i)$|^(idx|index|layer_number|i)$",
    "bias": r"(^|_)bias$|^(use|add|with|has)_.*bias|_bias$",
    "expansion": r"(^|_)(mlp|ff|dff|ffn|ffwd|feed_?forward|expan\w*|hidden|widen\w*)"
    r".*(ratio|mult|multiplier|factor|expansion)"
    r"|^(expansion|expansion_factor|mult|multiplier)$",
    "num_kv_heads": r"(kv|key_value|groups?).*heads?$|query_groups",
    "head_dim": OF_A_MODEL + r"head_?(dim|size|width)|(^|_)dim_(per_)?head|^d_head|_per_head$",
    "num_heads": OF_A_MODEL + r"(n|num|no|number)_?(of_)?(attention_|attn_|self_attn_|query_|q_)*heads?$"
    r"|^(encoder|decoder|model|self)_(attention|attn)_heads$",
    "vocabulary": r"vocab",
    "layers": r"^(n|num|number_of|no)_?(hidden_|decoder_|transformer_)?(layers?|blocks?)$|^(depth|layers)$",
    "multiple": r"^multiple_of$|(^|_)(dim|size|hidden)_?multiple$",
    "window": r"^(sliding|attn|attention|local|context)?_?window(_?(size|len|length))?$",
    "max_batch": r"^(?!.*cache).*max_?(batch|bsz|bs)(_?size)?$",
    "batch": r"^(?!.*cache)(.*_)?(batch|bsz)(_?size)?$",
    "on": r"^(use|apply|with|has|enable|do|is)_\w*(rope|rotary|rms|swiglu|silu|glu|gat(e|ing)|resid|pre_?norm|scal)"
    r"|^(pre_?norm|norm_first|gated)$",
    "off": r"^(use|apply|with|has|enable|do|is|no|disable|tie|share)_|(^|_)qk_?(layer_?|rms_?)?norm$"
    r"|^(flash|parallel)(_|$)",
    "rope_theta": r"(rope|rotary).*(theta|base)|^theta_|base_?freq",
    "max_seq_len": r"^(?!.*(cache|batch)).*(max|seq|context|block|ctx).*(len|length|size|pos\w*|ctx|window)$",
    "d_ff": r"(ff|ffn|ffwd|mlp|feed_?forward|inter\w*|inner)_?\w*(dim|size|width|hidden|features)"
    r"|(dim|d|size|width|n)_?(of_)?(ff|ffn|ffwd|mlp|feed_?forward|inner|inter)$",
    "d_model": r"^(?!.*(pos|rot|rope)).*(embd?|embed(ding)?s?)$"
    r"|(embd?|embed\w*_?|hidden|channels?)_?(dim(ension)?|size|width|channels|features)$|(hidden|channels?)$"
    r"|(model|residual)_?(dim|size|width|channels|features)$|(^|_)(d|dim|n)_?model$|^size$",
    "causal": r"causal",
    "activation": r"(^|_)act(ivation)?(_fn|_function)?$",
    "cache": r"cache",
}
"""Where no alias fits: in a configuration, or for an argument that is required."""
_NO_NUMBER = re.compile(r"(^|_)(type|kind|mode|name|style|class|cls|impl(ementation)?|method|fn|func(tion)?)$")
_NO_SIZE = re.compile(r"(^|_)(init|std|ratio|rate|prob|scale|scaling|factor|mult(iplier)?)$")
"""Last words of names that ask for a text or an object, and of names that ask for a number that is no size."""
_SIZES = {*SIZES, "vocabulary", "layers", "layer", "batch", "max_batch", "window", "rope_theta"}
_NUMBERS = _SIZES | {"eps", "dropout", "expansion", "causal", "on", "off"}


def meaning_of(name: str, *, loosely: bool = False) -> str | None:
    """What we call the argument of that name; None where its name says nothing.

    loosely: by parts of the name too, and what is no size: "layer", "bias", "expansion", "vocabulary", ..., and "on" or
    "off" for a switch that is on or off in Llama's design.
    """
    plain = re.sub(r"(?<=[dD][iI][mM])[sS]$", "", name.strip("_"))  # model_dims
    for meaning, aliases in ARGUMENTS.items():
        if plain in aliases.split():
            return meaning
    if not loosely or "chunk" in plain:
        return None
    plain = plain.lower()
    not_meant = _NUMBERS if _NO_NUMBER.search(plain) else _SIZES if _NO_SIZE.search(plain) else set()
    possible = (meaning for meaning in _LOOSE if meaning not in not_meant)
    return next((meaning for meaning in possible if re.search(_LOOSE[meaning], plain)), None)


def counts_repeats(name: str, others: Iterable[str]) -> bool:
    """Whether n_kv_groups is the number of query heads for each head of keys: another name says how many those are."""
    return "group" in name and any("group" not in one and meaning_of(one) == "num_kv_heads" for one in others)


CONFIG = re.compile(
    r"^((model|block|transformer|gpt|llm|encoder|decoder|attn|attention|layer|text|vision)_?)?(config|cfg|conf|args|params|hparams|hps|settings|opts?|options)$",
    re.I,
)
CONFIG_CLASS = re.compile(r"(config|args|params|settings|hparams|hyperparameters)\w*$", re.I)
ROPE = re.compile(
    r"rope|rotary|rotat|(^|_)rot(_|$)|freqs|(^|_)(cis|angles|phases)(_|$)|sin_?cos|cos_?sin"
    r"|pos(ition)?(al)?_?(emb|enc)\w*|^pe$",
    re.I,
)
PARTS = {
    "attention": (r"^(\w*_)?(att(n|ention)|mha|sa|self_?att(n|ention)?)(_?(layer|module|block|fn|mechanism))?$",
                  r"att(n|ention)|mha$"),
    "feed_forward": (r"^(\w*_)?(ffn?|mlp|feed_?forward|pff|pwff)(_?(layer|module|block|net|network))?$",
                     r"mlp|feed_?forward|ffn|glu|ffwd"),
    "norm": (r"^(\w*_)?(layer_?|rms_?)?norm_?(_?(layer|module|1|2))?$|^ln_?\d?$", r"norm$"),
}  # fmt: skip
"""Modules that a block may be handed: what the argument is called, and what their classes are called."""
ROPE_FLAG = re.compile(r"^(use|apply|with|has|enable|is)?_?(rope|rotary)(_?(pos\w*_?)?emb\w*)?$", re.I)
SCALE_FLAG = re.compile(
    r"^(use_|with_|do_)?((attn|attention|qk|scores?)_)?scal(e|ed|ing)(_(attn|attention|qk|scores?))?$", re.I
)
COS, SIN = re.compile(r"(^|_)cos(ine)?s?(_|$)", re.I), re.compile(r"(^|_)sin(e|es|s)?(_|$)", re.I)
POSITIONS = re.compile(
    r"^(token_|input_|cache_|seq_|x_|q_|kv_)?pos(ition)?s?(_ids?|_idx|_index|_indices)?$|^p$|^token_pos", re.I
)
START = re.compile(r"(start|cur|current|past|prev|kv)_?(pos|position|len|length)$|offset|^start$", re.I)
MASK = re.compile(r"mask|^attn_bias$|^attention_bias$|^allowed|^visible", re.I)
ATTENTION_MASK = re.compile(
    r"^_*((self|src|tgt|source|target|decoder|attn|attention|attend|causal|look_?ahead|future|window|sliding|local"
    r"|bool(ean)?|float|additive|4d|mask|bias|allowed|visible)s?_*)+$",
    re.I,
)
"""Of these the names that say who attends to whom, and not frames_mask or key_padding_mask."""
INPUT = re.compile(r"^(x|in_features|input|inputs|hidden_states|hidden)$")
FIRST = re.compile(r"^x_?0$")
"""The embeddings, which are the input of the first block."""
WEIGHTS = re.compile(r"^(weights|weight_dict|params|parameters|state_dict)$")
"""The arguments of a function that computes a block from a dictionary of weights."""
RESIDUAL = re.compile(r"^(residuals?|res|resid|prev_residual|residual_in)$")
"""What the block before left to be added; the first one has none."""
PADDING = re.compile(r"pad|key_|memory|cross|encoder|head_mask|document", re.I)
