"""How strangers' blocks are built and called: each with the parts that go with it."""

from dataclasses import dataclass

from .parts import ATTENTION, BLOCK, FEED_FORWARD, IMPORTS, MASKS, NORM, ROPE


@dataclass(frozen=True)
class Interface:
    """One way to build and to call a block. build, call: the lines that say so where nobody can guess them."""

    name: str
    rope: str  # of ROPE
    attention: str  # of ATTENTION
    feed_forward: str  # of FEED_FORWARD
    signature: str = "d_model, num_heads, d_ff"
    dim: str = "d_model"
    heads: str = "num_heads"
    hidden: str = "d_ff"
    make: str = "        self.d_model = d_model"
    arguments: str = ""  # of the attention's constructor, beside dim and n_heads
    given: str = ""  # for those
    kept: str = ""  # what the attention keeps of them
    forward: str = "x"
    before: str = ""
    call: str = ""  # what the block hands to attention
    inputs: str = ""  # what attention takes of that
    turn: str = "self.rope({}, pos)"
    mask: str = "inside"
    result: str = "x"
    extra: str = ""  # above the block
    after: str = ""  # below it
    attribute: str = "TransformerBlock"
    line_of_build: str | None = None
    line_of_call: str | None = None

    def source(self) -> str:
        """The file, with its slots."""
        block = BLOCK.format(
            name="TransformerBlock",
            signature=self.signature,
            make=self.make,
            dim=self.dim,
            heads=self.heads,
            hidden=self.hidden,
            given=self.given,
            forward=self.forward,
            before=self.before,
            call=self.call,
            result=self.result,
        )
        attention = ATTENTION[self.attention].format(
            arguments=self.arguments,
            rope=self.kept,
            inputs=self.inputs,
            turn_q=self.turn.format("q"),
            turn_k=self.turn.format("k"),
            mask=MASKS[self.mask],
        )
        parts = [
            IMPORTS,
            self.extra,
            NORM,
            ROPE[self.rope],
            attention,
            FEED_FORWARD[self.feed_forward],
            block,
            self.after,
        ]
        return "\n".join(parts)


OWN_ROPE = {
    "arguments": ", max_seq_len=64, theta=10000.0",
    "kept": "        self.rope = RoPE(theta, self.head_dim, max_seq_len)\n",
}
HERE = "        pos = torch.arange(x.shape[1], device=x.device)\n"

INTERFACES = [
    Interface("three_sizes", "module", "separate", "numbered", **OWN_ROPE, before=HERE, call=", pos", inputs=", pos"),
    Interface(
        "course_block",
        "module",
        "separate",
        "numbered",
        signature="d_model: int, num_heads: int, d_ff: int, max_seq_len: int, theta: float",
        given=", max_seq_len, theta",
        **OWN_ROPE,
        forward="x, token_positions=None",
        before=HERE + "        pos = pos if token_positions is None else token_positions\n",
        call=", pos",
        inputs=", pos",
    ),
    Interface(
        "rope_required",
        "module",
        "fused",
        "named",
        signature="d_model, num_heads, d_ff, rope: RoPE",
        arguments=", rope",
        given=", rope",
        kept="        self.rope = rope\n",
        forward="x, token_positions",
        call=", token_positions",
        inputs=", pos",
    ),
    Interface(
        "rope_optional",
        "module",
        "einsum",
        "fused",
        signature="d_model, num_heads, d_ff, rope: RoPE | None = None",
        arguments=", rope",
        given=", rope",
        kept="        self.rope = rope\n",
        before=HERE,
        call=", pos",
        inputs=", pos",
        turn="self.rope({0}, pos) if self.rope is not None else {0}",
    ),
    Interface(
        "cos_and_sin",
        "halves",
        "separate",
        "named",
        forward="x, cos, sin",
        call=", cos, sin",
        inputs=", cos, sin",
        turn="apply_rope({}, cos, sin)",
    ),
    Interface(
        "freqs_cis",
        "complex",
        "separate",
        "numbered",
        forward="x, freqs_cis",
        call=", freqs_cis",
        inputs=", freqs_cis",
        turn="apply_rotary_emb({}, freqs_cis)",
    ),
    Interface(
        "model_args",
        "complex",
        "separate",
        "numbered",
        signature="layer_id: int, args: ModelArgs",
        dim="args.dim",
        heads="args.n_heads",
        hidden="args.hidden_dim",
        make="        self.layer_id = layer_id",
        forward="x, start_pos, freqs_cis, mask",
        call=", freqs_cis, mask",
        inputs=", freqs_cis, mask",
        turn="apply_rotary_emb({}, freqs_cis)",
        mask="added",
        line_of_call="block(x, 0, rows(precompute_freqs_cis(head_dim, max_seq_len), positions), added(mask))",
        extra="""
@dataclass
class ModelArgs:
    dim: int = 512
    n_layers: int = 8
    n_heads: int = 8
    hidden_dim: int = 1376
    max_seq_len: int = 2048

""",
    ),
    Interface(
        "config_object",
        "module",
        "fused",
        "named",
        signature="config",
        dim="config.n_embd",
        heads="config.n_head",
        hidden="config.intermediate_size",
        make="        self.config = config",
        arguments=", block_size=64",
        kept="        self.rope = RoPE(10000.0, self.head_dim, block_size)\n",
        before=HERE,
        call=", pos",
        inputs=", pos",
        extra="""
@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    intermediate_size: int = 2048

""",
    ),
    Interface(
        "config_dict",
        "module",
        "separate",
        "fused",
        signature="cfg",
        dim='cfg["emb_dim"]',
        heads='cfg["n_heads"]',
        hidden='cfg["hidden_dim"]',
        make="        self.cfg = cfg",
        **OWN_ROPE,
        before=HERE,
        call=", pos",
        inputs=", pos",
    ),
    Interface(
        "tuple_returned",
        "halves",
        "separate",
        "named",
        forward="hidden_states, position_embeddings=None",
        before="        x = hidden_states\n        cos, sin = position_embeddings\n",
        call=", cos, sin",
        inputs=", cos, sin",
        turn="apply_rope({}, cos, sin)",
        result="(x, None)",
    ),
    Interface(
        "mask_attend",
        "module",
        "separate",
        "numbered",
        **OWN_ROPE,
        forward="x, mask",
        before=HERE,
        call=", pos, mask",
        inputs=", pos, mask",
        mask="attend",
        line_of_call="block(x, mask)",
    ),
    Interface(
        "mask_masked",
        "module",
        "fused",
        "numbered",
        **OWN_ROPE,
        forward="x, mask",
        before=HERE,
        call=", pos, mask",
        inputs=", pos, mask",
        mask="masked",
        line_of_call="block(x, ~mask)",
    ),
    Interface(
        "positions_required",
        "module",
        "einsum",
        "named",
        signature="dim, n_heads, hidden_dim, max_seq_len=2048, theta=10000.0",
        dim="dim",
        heads="n_heads",
        hidden="hidden_dim",
        make="        self.dim = dim",
        given=", max_seq_len, theta",
        **OWN_ROPE,
        forward="x, positions",
        call=", positions",
        inputs=", pos",
    ),
    Interface(
        "multiples_of_64",
        "module",
        "fused",
        "numbered",
        make='        assert d_ff % 64 == 0 and d_model % 64 == 0, "sizes must be multiples of 64"',
        **OWN_ROPE,
        before=HERE,
        call=", pos",
        inputs=", pos",
    ),
    Interface(
        "factory",
        "module",
        "separate",
        "named",
        **OWN_ROPE,
        before=HERE,
        call=", pos",
        inputs=", pos",
        after="""

def make_block(d_model, num_heads, d_ff):
    return TransformerBlock(d_model, num_heads, d_ff)
""",
        attribute="make_block",
    ),
]
