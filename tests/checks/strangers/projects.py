"""Right blocks in the styles in which they are published: with their packages, configurations, tables and masks.

Each is a project: files by path, what to judge, and where it cannot be guessed one line that says how. They are
written for these tests; what they have in common with real code is how they are imported, built and called.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """files: path -> text. judged: the path and the name. said: what the report must say in its lines or conventions."""

    name: str
    files: Mapping[str, str]
    judged: str
    build: str | None = None
    call: str | None = None
    said: tuple[str, ...] = ()
    outside: frozenset[str] = field(default_factory=frozenset)  # ids of findings that are another matter


HEAD = """\
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
"""

NORM = """

class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        wide = x.float() if x.dtype != torch.float64 else x
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).type_as(x)
"""

SWIGLU = """

class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff):
        super().__init__()
        self.w1 = nn.Linear(d_model, d_ff, bias=False)
        self.w2 = nn.Linear(d_ff, d_model, bias=False)
        self.w3 = nn.Linear(d_model, d_ff, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
"""

ROPE_MODULE = """

class RotaryPositionalEmbedding(nn.Module):
    def __init__(self, theta: float, d_k: int, max_seq_len: int, device=None):
        super().__init__()
        frequencies = theta ** (-torch.arange(0, d_k, 2, device=device).double() / d_k)
        angles = torch.arange(max_seq_len, device=device).double()[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        cos, sin = self.cos[token_positions].to(x.dtype), self.sin[token_positions].to(x.dtype)
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
"""

COURSE_ATTENTION = """

class CausalSelfAttention(nn.Module):
    def __init__(self, d_model, num_heads, rope=None):
        super().__init__()
        self.num_heads, self.rope = num_heads, rope
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = (nn.Linear(d_model, d_model, bias=False) for _ in "qkvo")

    def forward(self, x, token_positions=None, rope=None):
        batch, seq, d_model = x.shape
        q, k, v = (p(x).view(batch, seq, self.num_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        rope = rope or self.rope
        if rope is not None:
            if token_positions is None:
                token_positions = torch.arange(seq, device=x.device)
            q, k = rope(q, token_positions), rope(k, token_positions)
        mask = torch.tril(torch.ones(seq, seq, dtype=torch.bool, device=x.device))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, float("-inf"))
        y = scores.softmax(-1) @ v
        return self.output_proj(y.transpose(1, 2).reshape(batch, seq, d_model))
"""
PARTS = HEAD + NORM + SWIGLU + ROPE_MODULE + COURSE_ATTENTION

COURSE_BLOCK = """

class TransformerBlock(nn.Module):
    def __init__(self, d_model: int, num_heads: int, d_ff: int, max_seq_len: int, theta: float):
        super().__init__()
        rope = RotaryPositionalEmbedding(theta, d_model // num_heads, max_seq_len)
        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)
        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))
"""
VERSION = 'import importlib.metadata\n\n__version__ = importlib.metadata.version("cs336_basics")\n'


def _block(signature: str, body: str, forward: str, attention: str) -> str:
    """A course block with another signature."""
    return f"""

class TransformerBlock(nn.Module):
    def __init__(self, {signature}):
        super().__init__()
{body}
    def forward(self, {forward}):
        x = x + {attention}
        return x + self.ffn(self.ln2(x))
"""


PLAIN = """\
        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)
        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)
"""
WITHOUT = PLAIN.replace("num_heads, rope", "num_heads")

COURSE = [
    Project(name="one file", files={"model.py": PARTS + COURSE_BLOCK}, judged="model.py:TransformerBlock"),
    Project(
        name="package that asks for its version",
        files={"cs336_basics/__init__.py": VERSION, "cs336_basics/model.py": PARTS + COURSE_BLOCK},
        judged="cs336_basics/model.py:TransformerBlock",
    ),
    Project(
        name="package with another name of its distribution",
        files={
            "pyproject.toml": '[project]\nname = "my-assignment"\nversion = "1.0"\n',
            "cs336_basics/__init__.py": VERSION.replace("cs336_basics", "my-assignment"),
            "cs336_basics/model.py": PARTS + COURSE_BLOCK,
        },
        judged="cs336_basics/model.py:TransformerBlock",
    ),
    Project(
        name="package whose init trains",
        files={
            "cs336_basics/__init__.py": "from .train import main\n",
            "cs336_basics/train.py": "def main(): ...\n\nraise RuntimeError('no GPU')\n",
            "cs336_basics/model.py": PARTS + COURSE_BLOCK,
        },
        judged="cs336_basics/model.py:TransformerBlock",
        said=("cs336_basics/__init__.py",),
    ),
    Project(
        name="relative imports in a package",
        files={
            "cs336_basics/__init__.py": VERSION,
            "cs336_basics/layers.py": PARTS,
            "cs336_basics/block.py": "from .layers import *\nfrom .layers import CausalSelfAttention\n" + COURSE_BLOCK,
        },
        judged="cs336_basics/block.py:TransformerBlock",
    ),
    Project(
        name="relative imports without a package",
        files={"solution/layers.py": PARTS, "solution/block.py": "from .layers import *\n" + COURSE_BLOCK},
        judged="solution/block.py:TransformerBlock",
    ),
    Project(
        name="src layout",
        files={
            "pyproject.toml": '[project]\nname = "lm"\nversion = "0.1"\n',
            "src/lm/__init__.py": 'from importlib.metadata import version\n__version__ = version("lm")\n',
            "src/lm/nn/__init__.py": "",
            "src/lm/nn/layers.py": PARTS,
            "src/lm/nn/block.py": "from lm.nn.layers import *\n" + COURSE_BLOCK,
        },
        judged="src/lm/nn/block.py:TransformerBlock",
    ),
    Project(
        name="src as a name",
        files={"src/layers.py": PARTS, "src/model/block.py": "from src.layers import *\n" + COURSE_BLOCK},
        judged="src/model/block.py:TransformerBlock",
    ),
    Project(
        name="sibling package",
        files={"layers/parts.py": PARTS, "models/block.py": "from layers.parts import *\n" + COURSE_BLOCK},
        judged="models/block.py:TransformerBlock",
    ),
    Project(
        name="sibling file in a package",
        files={
            "work/__init__.py": "",
            "work/layers.py": PARTS,
            "work/block.py": "from layers import *\n" + COURSE_BLOCK,
        },
        judged="work/block.py:TransformerBlock",
    ),
    Project(
        name="names with spaces",
        files={"assignment 1 (final)/my model.py": PARTS + COURSE_BLOCK},
        judged="assignment 1 (final)/my model.py:TransformerBlock",
    ),
    Project(
        name="arguments and logs at import",
        files={
            "train_model.py": "import argparse\nimport logging\nimport os\n"
            + PARTS
            + 'parser = argparse.ArgumentParser()\nparser.add_argument("--lr", type=float, default=1e-3)\n'
            'parser.add_argument("--data", required=True)\nparser.add_argument("run")\nargs = parser.parse_args()\n'
            'os.makedirs("logs", exist_ok=True)\nlogging.basicConfig(filename="logs/train.log")\n'
            'logging.info("lr %s", args.lr)\n' + COURSE_BLOCK
        },
        judged="train_model.py:TransformerBlock",
    ),
    Project(
        name="packages for training that are missing",
        files={
            "model.py": "import wandb\nimport lightning as L\nfrom hydra.core.config_store import ConfigStore\n"
            + PARTS
            + "\n\nclass Lit(L.LightningModule):\n    pass\n\n\n@wandb.util.timed\ndef train():\n    wandb.init()\n"
            + COURSE_BLOCK
        },
        judged="model.py:TransformerBlock",
        said=("wandb", "pip install hydra-core"),
    ),
    Project(
        name="only the outer package raises",
        files={
            "lm/__init__.py": "from lm.nowhere import train\n",
            "lm/nn/__init__.py": "from .norms import RMSNorm, SwiGLU\n",
            "lm/nn/norms.py": HEAD + NORM + SWIGLU,
            "lm/nn/block.py": HEAD
            + "from lm.nn import RMSNorm, SwiGLU\n"
            + ROPE_MODULE
            + COURSE_ATTENTION
            + COURSE_BLOCK,
        },
        judged="lm/nn/block.py:TransformerBlock",
        said=("lm/__init__.py: left out",),
    ),
    Project(
        name="a folder for results at import",
        files={
            "scripts/model.py": "from pathlib import Path\n\nOUT = Path(__file__).parent.parent / 'exported'\n"
            "OUT.mkdir(exist_ok=True)\n" + PARTS + COURSE_BLOCK
        },
        judged="scripts/model.py:TransformerBlock",
        said=("exported is not made",),
    ),
    Project(
        name="a log beside the file, opened at import",
        files={
            "model.py": "import logging, os\n\nHERE = os.path.dirname(os.path.abspath(__file__))\n"
            "RECORD = open(os.path.join(HERE, 'record.txt'), 'w')\nRECORD.write('imported')\n"
            "logging.basicConfig(filename=os.path.join(HERE, 'log.txt'))\n" + PARTS + COURSE_BLOCK
        },
        judged="model.py:TransformerBlock",
        said=("log.txt is not written",),
    ),
    Project(
        name="a missing package is reported by another error",
        files={
            "model.py": "try:\n    import torchao.dtypes\nexcept ImportError as error:\n"
            '    raise RuntimeError("torchao is needed: see the installation guide") from error\n'
            + PARTS
            + COURSE_BLOCK
        },
        judged="model.py:TransformerBlock",
        said=("pip install torchao",),
    ),
    Project(
        name="rope handed to the constructor",
        files={
            "model.py": PARTS
            + _block("d_model, num_heads, d_ff, rope: nn.Module | None = None", PLAIN, "x", "self.attn(self.ln1(x))")
        },
        judged="model.py:TransformerBlock",
        said=("RotaryPositionalEmbedding",),
    ),
    Project(
        name="rope required by the constructor",
        files={
            "model.py": PARTS
            + _block(
                "d_model, num_heads, d_ff, rope",
                PLAIN,
                "x, token_positions=None",
                "self.attn(self.ln1(x), token_positions)",
            )
        },
        judged="model.py:TransformerBlock",
        said=("RotaryPositionalEmbedding",),
    ),
    Project(
        name="rope of another file",
        files={
            "lm/__init__.py": "",
            "lm/parts.py": HEAD + NORM + SWIGLU + COURSE_ATTENTION,
            "lm/rope.py": HEAD + ROPE_MODULE,
            "lm/block.py": "from .parts import *\n"
            + _block("d_model, num_heads, d_ff, rope", PLAIN, "x", "self.attn(self.ln1(x))"),
        },
        judged="lm/block.py:TransformerBlock",
        said=("RotaryPositionalEmbedding",),
    ),
    Project(
        name="rope handed to forward",
        files={
            "model.py": PARTS
            + _block(
                "d_model, num_heads, d_ff",
                WITHOUT,
                "x, rope, token_positions",
                "self.attn(self.ln1(x), token_positions, rope)",
            )
        },
        judged="model.py:TransformerBlock",
    ),
    Project(
        name="positions required",
        files={
            "model.py": PARTS
            + _block(
                "d_model, num_heads, d_ff, rope",
                PLAIN,
                "x, token_positions: Tensor",
                "self.attn(self.ln1(x), token_positions)",
            )
        },
        judged="model.py:TransformerBlock",
    ),
    Project(
        name="use_rope",
        files={
            "model.py": PARTS
            + _block(
                "d_model, num_heads, d_ff, max_seq_len=128, theta=10000.0, use_rope: bool = False",
                "        rope = RotaryPositionalEmbedding(theta, d_model // num_heads, max_seq_len) if use_rope else None\n"
                + PLAIN,
                "x",
                "self.attn(self.ln1(x))",
            )
        },
        judged="model.py:TransformerBlock",
        said=("use_rope=True",),
    ),
    Project(
        name="multiples of 64",
        files={
            "model.py": PARTS
            + COURSE_BLOCK.replace(
                "        super().__init__()\n",
                "        super().__init__()\n        assert d_ff % 64 == 0 and d_model % 64 == 0\n",
                1,
            )
        },
        judged="model.py:TransformerBlock",
    ),
    Project(
        name="configuration class",
        files={
            "model.py": PARTS
            + "\n\n@dataclass\nclass ModelConfig:\n    vocab_size: int\n    context_length: int\n    d_model: int\n"
            "    num_layers: int\n    num_heads: int\n    d_ff: int\n    rope_theta: float = 10000.0\n"
            + COURSE_BLOCK.replace("class TransformerBlock", "class Inner")
            + "\n\nclass TransformerBlock(Inner):\n    def __init__(self, config: ModelConfig):\n"
            "        super().__init__(config.d_model, config.num_heads, config.d_ff, config.context_length, config.rope_theta)\n"
        },
        judged="model.py:TransformerBlock",
        said=("ModelConfig(",),
    ),
    Project(
        name="factory",
        files={
            "block.py": PARTS + COURSE_BLOCK,
            "make.py": "from block import TransformerBlock\n\n\ndef make(d_model, num_heads, d_ff):\n"
            "    return TransformerBlock(d_model, num_heads, d_ff, 64, 10000.0)\n",
        },
        judged="make.py:make",
    ),
    Project(
        name="tuple returned",
        files={
            "model.py": PARTS
            + COURSE_BLOCK.replace("return x + self.ffn(self.ln2(x))", "return x + self.ffn(self.ln2(x)), None")
        },
        judged="model.py:TransformerBlock",
    ),
]

META = (
    HEAD
    + NORM
    + """

@dataclass
class ModelArgs:
    dim: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: Optional[int] = None
    vocab_size: int = -1
    multiple_of: int = 4
    norm_eps: float = 1e-5
    max_batch_size: int = 32
    max_seq_len: int = 2048


def precompute_freqs_cis(dim: int, end: int, theta: float = 10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    return torch.polar(*torch.broadcast_tensors(torch.ones(1), torch.outer(torch.arange(end).float(), freqs)))


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor):
    def turned(x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * freqs_cis.view(1, pairs.shape[1], 1, -1)).flatten(3).type_as(x)
    return turned(xq), turned(xk)


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_heads, self.head_dim = args.n_heads, args.dim // args.n_heads
        self.n_kv_heads = args.n_heads if args.n_kv_heads is None else args.n_kv_heads
        self.wq = nn.Linear(args.dim, args.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, self.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(args.n_heads * self.head_dim, args.dim, bias=False)
CACHE
    def forward(self, x: Tensor, start_pos: int, freqs_cis: Tensor, mask: Optional[Tensor]):
        bsz, seqlen, _ = x.shape
        xq, xk, xv = (w(x).view(bsz, seqlen, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)
STORE        keys, values = (t.repeat_interleave(self.n_heads // self.n_kv_heads, 2).transpose(1, 2) for t in (xk, xv))
        scores = torch.matmul(xq.transpose(1, 2), keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        return self.wo((scores @ values).transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, multiple_of: int):
        super().__init__()
        hidden_dim = multiple_of * ((int(2 * hidden_dim / 3) + multiple_of - 1) // multiple_of)
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, layer_id: int, args: ModelArgs):
        super().__init__()
        self.layer_id = layer_id
        self.attention = Attention(args)
        self.feed_forward = FeedForward(args.dim, 4 * args.dim, args.multiple_of)
        self.attention_norm = RMSNorm(args.dim, eps=args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, eps=args.norm_eps)

    def forward(self, x: Tensor, start_pos: int, freqs_cis: Tensor, mask: Optional[Tensor]):
        h = x + self.attention(self.attention_norm(x), start_pos, freqs_cis, mask)
        return h + self.feed_forward(self.ffn_norm(h))
"""
)
MASKED = META.replace("CACHE", "").replace("STORE", "")
WITH_CACHE = META.replace("CACHE", """\
        shape = (args.max_batch_size, args.max_seq_len, self.n_kv_heads, self.head_dim)
        self.cache_k, self.cache_v = torch.zeros(shape).cuda(), torch.zeros(shape).cuda()
""").replace("STORE", """\
        self.cache_k, self.cache_v = self.cache_k.to(xq).detach(), self.cache_v.to(xq).detach()
        self.cache_k[:bsz, start_pos : start_pos + seqlen] = xk
        self.cache_v[:bsz, start_pos : start_pos + seqlen] = xv
        xk, xv = self.cache_k[:bsz, : start_pos + seqlen], self.cache_v[:bsz, : start_pos + seqlen]
""")  # fmt: skip

HALVES = (
    HEAD
    + NORM
    + SWIGLU
    + """

def rotate_half(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Block(nn.Module):
    def __init__(self, hidden_size, num_attention_heads, intermediate_size):
        super().__init__()
        self.heads = num_attention_heads
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden_size), RMSNorm(hidden_size)
        self.qkv, self.o = nn.Linear(hidden_size, 3 * hidden_size, bias=False), nn.Linear(hidden_size, hidden_size, bias=False)
        self.mlp = SwiGLU(hidden_size, intermediate_size)

    def attention(self, x, turn, mask):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = turn(q), turn(k)
        MASKING
        return self.o(y.transpose(1, 2).reshape(b, t, -1))

    def forward(self, x, SIGNATURE):
        x = x + self.attention(self.input_layernorm(x), lambda t: TURN, MASK)
        return GIVEN
"""
)


def _halves(signature: str, turn: str, mask: str = "None", masking: str = "", returned: str = "") -> str:
    masking = masking or "y = F.scaled_dot_product_attention(q, k, v, is_causal=True)"
    returned = returned or "x + self.mlp(self.post_attention_layernorm(x))"
    text = HALVES.replace("SIGNATURE", signature).replace("TURN", turn)
    return text.replace("MASKING", masking).replace("MASK", mask).replace("GIVEN", returned)


TURNED = "t * cos + rotate_half(t) * sin"
ADDED = "y = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v"
FILLED = 'y = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill({}, float("-inf")).softmax(-1) @ v'
OWN = "torch.view_as_real(torch.view_as_complex(t.float().unflatten(-1, (-1, 2)).contiguous()) * {}).flatten(-2).type_as(t)"
REAL = "torch.stack((t[..., ::2] * f[..., 0] - t[..., 1::2] * f[..., 1], t[..., ::2] * f[..., 1] + t[..., 1::2] * f[..., 0]), -1).flatten(-2)"
CACHED_TABLES = """

def build_rope_cache(seq_len: int, n_elem: int, device=None, base: int = 10000):
    theta = 1.0 / (base ** (torch.arange(0, n_elem, 2, device=device).float() / n_elem))
    angles = torch.outer(torch.arange(seq_len, device=device), theta).repeat(1, 2)
    return torch.cos(angles), torch.sin(angles)
"""


def _one(name: str, text: str, *said: str, call: str | None = None, build: str | None = None) -> Project:
    return Project(name=name, files={"model.py": text}, judged="model.py:Block", said=said, call=call, build=build)


MINIMAL = (
    HEAD
    + NORM
    + SWIGLU
    + ROPE_MODULE
    + COURSE_ATTENTION
    + """

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        rope = RotaryPositionalEmbedding(10000.0, GET(n_embd) // GET(n_head), GET(block_size))
        self.ln_1, self.ln_2 = RMSNorm(GET(n_embd)), RMSNorm(GET(n_embd))
        self.attn, self.mlp = CausalSelfAttention(GET(n_embd), GET(n_head), rope), SwiGLU(GET(n_embd), 4 * GET(n_embd))
        self.drop = nn.Dropout(GET(resid_pdrop))

    def forward(self, x):
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.mlp(self.ln_2(x))
"""
)


def _minimal(get: str) -> str:
    import re

    return re.sub(r"GET\((\w+)\)", get, MINIMAL)


REPOSITORIES = [
    Project(name="layer_id, args, start_pos", files={"model.py": MASKED}, judged="model.py:TransformerBlock",
            said=("ModelArgs(dim=d_model", "precompute_freqs_cis", "added to the scores")),
    Project(name="caches on a GPU", files={"llama/__init__.py": "", "llama/model.py": WITH_CACHE},
            judged="llama/model.py:TransformerBlock"),
    _one("cos and sin over halves", _halves("cos, sin", TURNED), "torch.cat((cos, cos), -1)"),
    _one("cos and sin of pairs", _halves("cos, sin", TURNED.replace("rotate_half(t)", "torch.stack((-t[..., 1::2], t[..., ::2]), -1).flatten(-2)")),
         "repeat_interleave"),
    _one("position_embeddings, as a tuple", _halves("position_embeddings", TURNED.replace("cos", "position_embeddings[0].unsqueeze(1)").replace("sin", "position_embeddings[1].unsqueeze(1)"))),
    _one("tables of the file", _halves("cos, sin", TURNED) + CACHED_TABLES, "build_rope_cache"),
    _one("complex freqs_cis", _halves("freqs_cis", OWN.format("freqs_cis"))),
    _one("real freqs_cis", _halves("freqs_cis, input_pos", REAL.replace("f[", "freqs_cis["))),
    _one("mask that is added", _halves("cos, sin, mask", TURNED, "mask", ADDED), "added to the scores"),
    _one("mask, True may attend", _halves("cos, sin, mask", TURNED, "mask", FILLED.format("~mask")), "True where a query may attend"),
    _one("mask, True is masked", _halves("cos, sin, mask", TURNED, "mask", FILLED.format("mask")), "may not attend"),
    _one("mask == 0", _halves("cos, sin, mask", TURNED, "mask", FILLED.format("mask == 0")), "True where a query may attend"),
    _one("cache and tuple", _halves("cos, sin, kv_cache=None, use_cache=False", TURNED, returned="(x + self.mlp(self.post_attention_layernorm(x)), (x, x))")),
    _one("one line that calls it", _halves("turns, mask", REAL.replace("f[", "turns["), "mask", ADDED), "added(mask)",
         call="block(x, torch.view_as_real(freqs_cis[:seq]).to(x.dtype), mask)"),
    _one("configuration with attributes", _minimal(r"config.\1"), "config(n_embd=d_model"),
    _one("configuration as a dictionary", _minimal(r"config['\1']"), "config(n_embd=d_model"),
    Project(name="one line that builds it", judged="model.py:Layer", files={"model.py": PARTS + '''

class Layer(nn.Module):
    def __init__(self, attn, mlp, sa_norm, mlp_norm):
        super().__init__()
        self.attn, self.mlp, self.sa_norm, self.mlp_norm = attn, mlp, sa_norm, mlp_norm

    def forward(self, x, *, input_pos=None):
        h = x + self.attn(self.sa_norm(x), input_pos)
        return h + self.mlp(self.mlp_norm(h))
'''}, build="Layer(CausalSelfAttention(d_model, num_heads, RotaryPositionalEmbedding(theta, head_dim, max_seq_len)), SwiGLU(d_model, d_ff), RMSNorm(d_model, eps), RMSNorm(d_model, eps))"),
]  # fmt: skip
FLEX = """
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

flex_attention = torch.compile(flex_attention, dynamic=False)


class FlexAttention(CausalSelfAttention):
    def forward(self, x):
        batch, seq, d_model = x.shape
        q, k, v = (p(x).view(batch, seq, self.num_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        positions = torch.arange(seq, device=x.device)
        mask = create_block_mask(lambda batch, head, i, j: i >= j, None, None, seq, seq, device=x.device)
        y = flex_attention(self.rope(q, positions), self.rope(k, positions), v, block_mask=mask)
        return self.output_proj(y.transpose(1, 2).reshape(batch, seq, d_model))
"""
CACHED = """

class CachedAttention(CausalSelfAttention):
    def __init__(self, d_model, num_heads, rope, max_batch_size):
        super().__init__(d_model, num_heads, rope)
        self.register_buffer("last", torch.zeros(max_batch_size, 512, d_model), persistent=False)

    def forward(self, x):
        self.last[: x.shape[0], : x.shape[1]] = x.detach()
        return super().forward(x)
"""
KEYWORDS = """\
        d_model, num_heads = kwargs["d_model"], kwargs.get("n_heads", 8)
        rope = RotaryPositionalEmbedding(kwargs.pop("theta", 10000.0), d_model // num_heads, kwargs["max_seq_len"])
        d_ff = kwargs["d_ff"]
"""
LAZY = """\
        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)
        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)
        self.ffn.w1, self.ffn.w3 = nn.LazyLinear(d_ff, bias=False), nn.LazyLinear(d_ff, bias=False)
"""
ON_CUDA = "        self.attn.rope.cos = torch.zeros(1, device='cuda') + self.attn.rope.cos.cuda()\n"
HANDS_ON = """

class NormOfTheSum(RMSNorm):
    def forward(self, x, residual=None):
        if residual is None:
            return super().forward(x), x
        return super().forward(x + residual), x + residual


class TransformerBlock(nn.Module):
    def __init__(self, d_model: int, num_heads: int, d_ff: int, max_seq_len: int, theta: float):
        super().__init__()
        rope = RotaryPositionalEmbedding(theta, d_model // num_heads, max_seq_len)
        self.ln1, self.ln2 = NormOfTheSum(d_model), NormOfTheSum(d_model)
        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)

    def forward(self, hidden_states, residual: Optional[Tensor]):
        hidden_states, residual = self.ln1(hidden_states, residual)
        hidden_states, residual = self.ln2(self.attn(hidden_states), residual)
        return self.ffn(hidden_states), residual
"""
ANNOTATED = """

class SelfAttentionLayer(nn.Module):
    def __init__(self, size, self_attn, feed_forward):
        super().__init__()
        self.self_attn, self.feed_forward = self_attn, feed_forward
        self.norms = nn.ModuleList([RMSNorm(size) for _ in range(2)])

    def forward(self, x):
        x = x + self.self_attn(self.norms[0](x))
        return x + self.feed_forward(self.norms[1](x))
"""
SETTINGS = """\
        d_model, num_heads, d_ff = stuff.d_model, stuff.heads, stuff.d_ff
        rope = RotaryPositionalEmbedding(10000.0, d_model // num_heads, 512)
"""
OWN_ROPE = "        rope = RotaryPositionalEmbedding(10000.0, d_model // num_heads, 512)\n"
FOR_FEW = OWN_ROPE + PLAIN.replace("CausalSelfAttention", "CachedAttention").replace("rope)", "rope, max_batch_size)")
THREE = "d_model, num_heads, d_ff"
ATTENDS = "self.attn(self.ln1(x))"


def _of_x_alone(body: str, signature: str = THREE, more: str = "") -> dict[str, str]:
    return {"model.py": PARTS + more + _block(signature, body, "x", ATTENDS)}


HABITS = [
    Project(
        name="sizes read from **kwargs",
        files=_of_x_alone(KEYWORDS + PLAIN, "**kwargs"),
        judged="model.py:TransformerBlock",
        said=("n_heads=num_heads", "max_seq_len=max_seq_len"),
    ),
    Project(name="lazy layers", files=_of_x_alone(OWN_ROPE + LAZY), judged="model.py:TransformerBlock"),
    Project(
        name="flex_attention",
        files=_of_x_alone(OWN_ROPE + PLAIN.replace("CausalSelfAttention", "FlexAttention"), more=FLEX),
        judged="model.py:TransformerBlock",
        said=("its formula stands in", "'causal': True"),
    ),
    Project(
        name="device='cuda' in the constructor",
        files=_of_x_alone(OWN_ROPE + PLAIN + ON_CUDA),
        judged="model.py:TransformerBlock",
        said=("device='cuda' is left out", ".cuda() does nothing"),
    ),
    Project(
        name="hands its residual on",
        files={"model.py": PARTS + HANDS_ON},
        judged="model.py:TransformerBlock",
        said=("summed(block)(x, residual=None)", "their sum is compared"),
    ),
    Project(
        name="modules handed in",
        files={"model.py": PARTS + ANNOTATED},
        judged="model.py:SelfAttentionLayer",
        said=("self_attn=CausalSelfAttention(", "feed_forward=SwiGLU("),
    ),
    Project(
        name="settings under any name",
        files=_of_x_alone(SETTINGS + PLAIN, "stuff"),
        judged="model.py:TransformerBlock",
        said=("stuff=config(",),
    ),
    Project(
        name="a cache for few sequences",
        files=_of_x_alone(FOR_FEW, "d_model, num_heads, d_ff, max_batch_size=4", CACHED),
        judged="model.py:TransformerBlock",
        said=("max_batch_size=64",),
    ),
    Project(
        name="mixes the embeddings in",
        files={"model.py": PARTS + _block(THREE, OWN_ROPE + PLAIN, "x, x0", "self.attn(self.ln1(x)) + 0 * x0")},
        judged="model.py:TransformerBlock",
        said=("x0=x",),
    ),
]
PROJECTS = COURSE + REPOSITORIES + HABITS
