"""A model and its tokenizer as one GGUF file, which llama.cpp reads. Written by gguf's own writer.

Names of tensors and keys are those of llama.cpp's src/llama-arch.cpp and convert_hf_to_gguf.py, as in llama-cpp-python
0.3.36.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from tokenizers import Tokenizer
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..ops.rope_frequencies import rope_frequencies
from .gguf_tokenizer import Vocabulary, vocabulary_of
from .room import check_disk
from .rope import half_split
from .writing import family_of

# By model_type: llama.cpp's name of the architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

# Where a model's name has one of these, llama.cpp takes spaces behind special tokens away, and needs tokens of Phi-3.
_NAMES_WITH_RULES = ("phi-3", "phi3")

_OUTSIDE = {"embedding": "token_embd", "final_norm": "output_norm", "lm_head": "output"}
_IN_A_LAYER = {
    "norm1": "attn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.o_proj": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "norm2": "ffn_norm",
    "ffn.gate_proj": "ffn_gate",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    eos_token_ids: tuple[int, ...] = (),
    dtype: torch.dtype | None = None,
    name: str = "",
) -> list[str]:
    """Write the file, its matrices in `dtype` (None: as they are). Gives what of the tokenizer llama.cpp has otherwise.

    Token ids mean the same there; the notes say where a text may become other ids.
    Raises ConfigError for a model that llama.cpp's Llama and Qwen cannot express, and if the gguf package is missing;
    CheckpointError for a tokenizer other than byte-level BPE, and if the file cannot be written.
    """
    architecture = _architecture(config)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size, eos_token_ids)
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("a GGUF file is written by the gguf package: pip install 'prenorm[gguf]'.") from error
    check_disk(sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in tensors.values()), path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(temporary, architecture)
        _add_settings(writer, gguf, config, name, dtype or tensors["embedding.weight"].dtype)
        _add_vocabulary(writer, gguf, vocabulary)
        for stored, tensor in _renamed(config, tensors, architecture):
            _add_tensor(writer, gguf, stored, tensor, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return vocabulary.notes


def _architecture(config: ModelConfig) -> str:
    """llama.cpp's architecture that computes what the model does. Raises ConfigError where there is none."""
    scaling, architecture = config.rope_scaling, ARCHITECTURES.get(family_of(config))
    problems = []
    if architecture is None or config.family is not None:
        problems.append("its parts are not those of Llama, Qwen2 or Qwen3")
    if config.window is not None and config.window < config.max_seq_len:
        problems.append(f"window is {config.window}, which llama.cpp does not have there")
    if architecture == "qwen3" and (config.qkv_bias or config.o_bias):
        problems.append("qk_norm and biases are not had together there")
    if scaling is not None and scaling.kind != "linear" and (scaling.kind != "llama3" or architecture != "llama"):
        problems.append(f"rope_scaling is {scaling.kind!r}, which is not written yet")
    if problems:
        raise ConfigError(
            f"a GGUF file can hold models that llama.cpp computes alike, but {'; '.join(problems)}. save_pretrained "
            "writes a folder that its own converter may know."
        )
    assert architecture is not None
    return architecture


def _add_settings(writer: Any, gguf: Any, config: ModelConfig, name: str, dtype: torch.dtype) -> None:
    if not any(theirs in name.lower() for theirs in _NAMES_WITH_RULES):
        writer.add_name(name)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_theta))
    writer.add_layer_norm_rms_eps(float(config.eps))
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_scaling.factor))
    kinds = {torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds.get(dtype, "ALL_F32")])


def _add_vocabulary(writer: Any, gguf: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    places = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, id in zip(places, vocabulary.ends, strict=False):
        add(id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)


def _renamed(config: ModelConfig, tensors: Mapping[str, Tensor], architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name there, rotated pairs in the order that the architecture has."""
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        frequencies = (rope_frequencies(config.head_dim, config.rope_theta, one) for one in (None, config.rope_scaling))
        plain, stretched = frequencies
        yield "rope_freqs.weight", (plain / stretched).float()
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module in _OUTSIDE:
            yield f"{_OUTSIDE[module]}.{kind}", tensor
            continue
        _, layer, part = module.split(".", 2)
        if part in ("attn.q_proj", "attn.k_proj", "attn.q_norm", "attn.k_norm"):
            tensor = _in_order(tensor, config, interleaved=architecture == "llama")
        yield f"blk.{layer}.{_IN_A_LAYER[part]}.{kind}", tensor


def _in_order(rows: Tensor, config: ModelConfig, *, interleaved: bool) -> Tensor:
    if config.rope_interleaved == interleaved:
        return rows
    return _interleaved(rows, config.head_dim) if interleaved else half_split(rows, config.head_dim)


def _interleaved(rows: Shaped[Tensor, "*shape"], head_dim: int) -> Shaped[Tensor, "*shape"]:
    """`half_split` backwards."""
    halves = rows.reshape(rows.shape[0] // head_dim, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _add_tensor(writer: Any, gguf: Any, name: str, tensor: Tensor, dtype: torch.dtype | None) -> None:
    """A matrix in `dtype`; vectors are in float32, which llama.cpp asks for."""
    wanted = torch.float32 if tensor.ndim == 1 else dtype or tensor.dtype
    wanted = wanted if wanted in DTYPES else torch.float32
    plain = tensor.detach().to("cpu", wanted).contiguous()
    if wanted == torch.float16 and bool(plain.isinf().any() and tensor.isfinite().all()):
        raise ConfigError(
            f"{name} has numbers beyond float16's largest, 65504; bfloat16 and float32 have room for them."
        )
    if wanted == torch.bfloat16:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, plain.view(torch.uint8).numpy(), raw_dtype=kind)
    else:
        writer.add_tensor(name, plain.numpy())
