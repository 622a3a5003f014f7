"""The names and signatures that users rely on, written out once more."""

import inspect
import subprocess
import sys

import pytest

import prenorm
import prenorm.functional as F


def parameters_of(function):
    """The parameters, without self, as a caller sees them."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter for parameter in parameters if parameter.name != "self"]


def written(parameters):
    """As in a def: name or name=default, with a star before keyword-only ones."""
    marks = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    words = []
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
        words.append(f"{marks.get(parameter.kind, '')}{parameter.name}{default}")
    return ", ".join(words)


ON_A_DEVICE = "device=None, dtype=None"
# What a call may rely on; extra keyword-only parameters may follow.
SIGNATURES = {
    prenorm.Linear: f"in_features, out_features, bias=False, {ON_A_DEVICE}",
    prenorm.Embedding: f"vocab_size, d_model, {ON_A_DEVICE}",
    prenorm.RMSNorm: f"d_model, eps=1e-06, {ON_A_DEVICE}",
    prenorm.LayerNorm: f"d_model, eps=1e-05, {ON_A_DEVICE}",
    prenorm.MultiHeadAttention: "d_model, num_heads, dropout=0.1",
    prenorm.MultiHeadAttention.forward: "query, key, value, mask=None",
    prenorm.TransformerDecoderBlock: "d_model, num_heads, d_ff=None, dropout=0.1",
    prenorm.TransformerEncoder: "num_layers, d_model, num_heads, d_ff=None, dropout=0.1",
    prenorm.TransformerEncoder.forward: "x, mask=None, use_checkpointing=True",
    prenorm.SwiGLU: f"d_model, d_ff, {ON_A_DEVICE}",
    prenorm.RotaryEmbedding: "head_dim, max_seq_len, theta=10000.0, interleaved=True, scaling=None",
    prenorm.TransformerBlock: "d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-06, "
    f"{ON_A_DEVICE}, *, num_kv_heads=None, head_dim=None, causal=False, window=None, rope_interleaved=True, "
    "rope_scaling=None, qk_norm=False, qkv_bias=False, o_bias=False, dropout=0.0",
    prenorm.TransformerBlock.forward: "x, token_positions=None, *, mask=None, segment_ids=None, cache=None",
    prenorm.TransformerBlock.make_cache: "batch_size, max_seq_len, dtype=None",
    prenorm.ModelConfig: "vocab_size, d_model, num_layers, num_heads, num_kv_heads=None, head_dim=None, d_ff=None, "
    "max_seq_len=2048, rope_theta=10000.0, rope_interleaved=False, rope_scaling=None, eps=1e-06, window=None, "
    "qk_norm=False, qkv_bias=False, o_bias=False, tie_embeddings=False, dropout=0.0",
    prenorm.TransformerLM: "config",
    prenorm.TransformerLM.forward: "token_ids, token_positions=None, *, segment_ids=None, cache=None",
    prenorm.TransformerLM.loss: "token_ids, targets, *, segment_ids=None",
    prenorm.TransformerLM.make_cache: "batch_size, max_seq_len, dtype=None",
    prenorm.TransformerLM.from_pretrained: "folder, dtype=None, device=None",
    prenorm.TransformerLM.save_pretrained: "folder",
    prenorm.parallelize: "module, mesh",
    prenorm.use_backend: "name",
    prenorm.explain: "module=None, *inputs",
    F.multihead_self_attention_with_rope: "*, d_model, num_heads, max_seq_len, theta, q_proj_weight, k_proj_weight, "
    "v_proj_weight, o_proj_weight, in_features, token_positions=None, causal=False",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_begin_as_the_design_has_them(function):
    wanted, parameters = SIGNATURES[function], parameters_of(function)
    named = len(wanted.replace("*, ", "").split(", "))
    assert written(parameters[:named]) == wanted
    for added in parameters[named:]:  # a call that was right before still is
        assert added.default is not inspect.Parameter.empty or added.kind is inspect.Parameter.VAR_KEYWORD


def test_every_public_name_can_be_imported():
    names = set(prenorm.__all__)
    assert len(names) == len(prenorm.__all__)
    assert names <= set(dir(prenorm))
    for name in names:
        assert getattr(prenorm, name) is not None
    with pytest.raises(AttributeError, match="'prenorm' has no attribute 'Transfomer'"):
        _ = prenorm.Transfomer


def test_the_functions_are_those_of_the_design():
    assert set(F.__all__) >= {
        *("linear", "silu", "swiglu", "softmax", "rms_norm", "rope", "scaled_dot_product_attention"),
        *("multihead_self_attention", "multihead_self_attention_with_rope", "cross_entropy", "linear_cross_entropy"),
    }
    assert all(callable(getattr(F, name)) for name in F.__all__)


def test_every_public_name_has_a_docstring():
    modules = {prenorm: prenorm.__all__, F: F.__all__}
    bare = [name for module, names in modules.items() for name in names if not inspect.getdoc(getattr(module, name))]
    assert bare == []


def test_importing_the_package_does_not_load_torch():
    code = "import sys, prenorm; assert prenorm.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
