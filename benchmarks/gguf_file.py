"""A language model as the GGUF file that llama.cpp reads.

What has two dimensions is stored in one type: float32, bfloat16, or llama.cpp's blocks of 32 numbers with a float16
scale, int8 (Q8_0) and int4 (Q4_0), the token embedding and the head as well, so that no file of that type is smaller.
Norms stay float32, without which llama.cpp does not run. There is no tokenizer in it: tokens go in and out as ids.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize
from torch import Tensor

from prenorm import TransformerLM

TYPES = {
    "float32": GGMLQuantizationType.F32,
    "bfloat16": GGMLQuantizationType.BF16,
    "int8": GGMLQuantizationType.Q8_0,
    "int4": GGMLQuantizationType.Q4_0,
}
NAMES = {
    "norm1": "attn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.o_proj": "attn_output",
    "norm2": "ffn_norm",
    "ffn.gate_proj": "ffn_gate",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}


def write(model: TransformerLM, dtype: str, file: Path) -> None:
    """Store the weights of a model that has what Llama has: no biases, no qk-norm, no window, a head of its own."""
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = pairs_side_by_side(weight, config.head_dim)
        numbers, kind = stored(weight, dtype)
        writer.add_tensor(renamed(name), numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bytes_but_the_embedding(file: Path) -> int:
    """The weights that are read for every token."""
    return sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors if tensor.name != "token_embd.weight")


def renamed(name: str) -> str:
    """What llama.cpp calls a parameter of ours."""
    whole = {"embedding.weight": "token_embd.weight", "final_norm.weight": "output_norm.weight"}
    if not name.startswith("layers."):
        return whole.get(name, "output.weight")
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def pairs_side_by_side(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of each head in llama.cpp's order: it rotates rows 2i and 2i+1 together, we i and i + head_dim/2."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def stored(weight: Tensor, dtype: str) -> tuple[np.ndarray, GGMLQuantizationType]:
    """A weight's numbers as they lie in the file, and what they are."""
    if weight.ndim == 1:
        return weight.float().numpy(), TYPES["float32"]
    kind = TYPES[dtype]
    if dtype == "bfloat16":
        return weight.bfloat16().contiguous().view(torch.uint8).numpy(), kind
    return quantize(weight.float().contiguous().numpy(), kind), kind
