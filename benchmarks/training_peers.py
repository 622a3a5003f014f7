"""The models that `make bench-training` trains: ours, and those of other packages, of one size and one number of FLOPs.

Hugging Face's Llama and litgpt's have the weights of ours, and so the same losses. The third is as nanoGPT is written
(Karpathy 2022), compiled, as nanoGPT trains by default: LayerNorm, one matrix for queries, keys and values, a GELU
between two matrices, learned positions. litgpt comes from a folder of its own, because it wants an older
huggingface-hub than transformers does: `make bench-training` puts it there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from prenorm import ModelConfig, TransformerLM

Loss = Callable[[Tensor, Tensor], Tensor]
LITGPT = Path(sys.prefix) / "litgpt"


def peers(config: ModelConfig, folder: Path) -> dict[str, tuple[nn.Module, Loss]]:
    """Each model in training mode, with what gives its mean loss. folder: for the weights of ours, which are saved."""
    TransformerLM(config).save_pretrained(folder)
    ours = TransformerLM.from_pretrained(folder).train()
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    nano = NanoGPT(config).train()
    compiled = torch.compile(nano)
    found: dict[str, tuple[nn.Module, Loss]] = {
        "prenorm": (ours, ours.loss),
        "transformers": (
            theirs,
            lambda x, y: theirs(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss,
        ),
        "nanoGPT's kind, compiled": (nano, lambda x, y: plain_loss(compiled(x), y)),
    }
    if LITGPT.is_dir():
        lit = litgpt(ours).train()
        found["litgpt"] = (lit, lambda x, y: plain_loss(lit(x), y))
    return found


def plain_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """What these models' training scripts call."""
    return cross_entropy(logits.flatten(0, -2), targets.flatten())


def litgpt(ours: Any) -> nn.Module:
    """litgpt's Llama, with the weights of ours."""
    sys.path.insert(0, str(LITGPT))
    from litgpt import GPT, Config

    config = ours.config
    made: nn.Module = GPT(
        Config(
            name="",
            block_size=config.max_seq_len,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_embd=config.d_model,
            intermediate_size=config.d_ff,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=config.eps,
            mlp_class_name="LLaMAMLP",
        )
    )
    weights = {
        "lm_head.weight": ours.lm_head.weight,
        "transformer.wte.weight": ours.embedding.weight,
        "transformer.ln_f.weight": ours.final_norm.weight,
    }
    for number, block in enumerate(ours.layers):
        attn, ffn = block.attn, block.ffn
        weights |= {
            f"transformer.h.{number}.{name}.weight": weight
            for name, weight in {
                "norm_1": block.norm1.weight,
                "attn.qkv": torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]),
                "attn.proj": attn.o_proj.weight,
                "norm_2": block.norm2.weight,
                "mlp.fc_1": ffn.gate_proj.weight,
                "mlp.fc_2": ffn.up_proj.weight,
                "mlp.proj": ffn.down_proj.weight,
            }.items()
        }
    made.load_state_dict(weights)
    return made


class NanoGPT(nn.Module):
    """A GPT-2, with matrices of as many numbers as a Llama of this config has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(NanoBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids (batch, seq) to logits."""
        x = self.tokens(token_ids) + self.positions(torch.arange(token_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class NanoBlock(nn.Module):
    """Attention and two matrices, before each a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.d_model, config.d_ff * 3 // 2
        self.heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, d_model)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        added: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return added
