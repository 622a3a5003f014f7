"""The page that shows what a model does with a prompt: Plotly's plots, which answer to the mouse, in one file."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor

from ..checkpoint.files import json_content, write_together
from ..errors import ConfigError
from ..page import Raw, Section, Table, page
from .attention import Look
from .report import as_csv

LARGEST_PAGE = 20_000_000  # bytes
SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}

CONTROLS = """<p><label>Layer <select id="layer"></select></label>
<label>Head <select id="head"><option value="all">all</option></select></label></p>
<noscript><p>The plots need JavaScript; the figures in the table do not.</p></noscript>
<div id="attention"></div>"""


def write_attention(
    out: Path, model: str, prompt: str, shown: Look, token_ids: list[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Leave attention.html, and attention.json and .csv with its figures but for the weights. Gives what JSON says.

    Raises ConfigError for a folder that holds other things, and what `attention_page` raises.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "attention.json").is_file()):
        raise ConfigError(f"out must be a new folder or one of this command's, but {out} is not; choose another --out.")
    text = attention_page(model, prompt, shown, token_ids, tokenizer)
    tokens = [_token(tokenizer, one) for one in token_ids]
    choices = [[[_token(tokenizer, one) for one in row] for row in tokens] for tokens in shown.choices.tolist()]
    record = {
        "experiment": "attention",
        "model": model,
        "prompt": prompt,
        "tokens": tokens,
        "layers": _layers(shown),
        "stream_rms": shown.stream_rms.tolist(),
        "lens_tokens": choices,
        "lens_probabilities": shown.probabilities.tolist(),
        "page": str(out / "attention.html"),
    }
    rows = [
        (
            layer,
            place,
            token,
            shown.stream_rms[i, place].item(),
            choices[i][place][0],
            shown.probabilities[i, place, 0].item(),
        )
        for i, layer in enumerate(_layers(shown))
        for place, token in enumerate(tokens)
    ]
    figures = Table(("layer", "place", "token", "stream_rms", "likeliest", "probability"), rows)
    write_together(
        {
            out / "attention.csv": as_csv(figures),
            out / "attention.html": text.encode(),
            out / "attention.json": json_content(record),
        }
    )
    return record


def attention_page(model: str, prompt: str, shown: Look, token_ids: list[int], tokenizer: Tokenizer) -> str:
    """The page, with Plotly in it. Raises ConfigError where plotly is missing, and for what makes no page of 20 MB."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ConfigError("the page of plots needs plotly: pip install 'prenorm[plot]'.") from error
    library = f"<script>{get_plotlyjs()}</script>"
    for bits in (16, 8):
        text = _page(model, prompt, library, _facts(shown, token_ids, tokenizer, bits), shown)
        if len(text.encode()) <= LARGEST_PAGE:
            return text
    layers, heads, seq, _ = shown.weights.shape
    raise ConfigError(
        f"a page has at most {LARGEST_PAGE / 1e6:.0f} MB, but {layers} layers of {heads} heads over {seq} tokens make "
        f"{len(text.encode()) / 1e6:.0f} MB; give a shorter prompt."
    )


def _page(model: str, prompt: str, library: str, facts: dict[str, Any], shown: Look) -> str:
    data = json.dumps(facts, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    drawn = Path(__file__).with_name("attention.js").read_text(encoding="utf-8")
    columns = ("layer", "least", "mean", "most")
    rows = [
        (name, float(row.min()), float(row.mean()), float(row.max()))
        for name, row in zip(facts["layers"], shown.stream_rms, strict=True)
    ]
    sections = [
        Section("Attention", ["How much each token (a row) takes from each one before it.", Raw(CONTROLS)]),
        Section(
            "The residual stream",
            [
                "Its root mean square after each block, token by token.",
                Raw('<div id="stream"></div>'),
                Table(columns, rows, "Root mean square of the stream over the tokens"),
            ],
        ),
        Section(
            "Logit lens",
            [
                "What the model would say next if it ended after this block: its own final norm and head, applied to "
                "the stream. The colour is the probability of the likeliest token.",
                Raw('<div id="lens"></div>'),
                Raw(f"{library}<script>const look = {data};\n{drawn}</script>", scripts=True),
            ],
        ),
    ]
    introduction = [f"The model in {model}, and the prompt {prompt!r}: {len(facts['tokens'])} tokens."]
    return page("Attention, stream and logit lens", sections, introduction=introduction)


def _facts(shown: Look, token_ids: list[int], tokenizer: Tokenizer, bits: int) -> dict[str, Any]:
    """What the page's script is given; its texts are safe as HTML."""
    spelled = [
        [
            [(_spelled(tokenizer, token), p) for token, p in zip(*row, strict=True)]
            for row in zip(tokens, probabilities, strict=True)
        ]
        for tokens, probabilities in zip(shown.choices.tolist(), shown.probabilities.double().tolist(), strict=True)
    ]
    return {
        "tokens": [_spelled(tokenizer, token) for token in token_ids],
        "layers": _layers(shown),
        "shape": list(shown.weights.shape[:3]),
        "bits": bits,
        "weights": _packed(shown.weights, bits),
        "rms": shown.stream_rms.tolist(),
        "choices": spelled,
    }


def _layers(shown: Look) -> list[str]:
    return ["embedding", *(f"block {number}" for number in range(1, len(shown.weights) + 1))]


def _packed(weights: Float[Tensor, "layers heads seq seq"], bits: int) -> str:
    """The causal half of every head, row by row, as base64 of unsigned little-endian numbers."""
    seq = weights.shape[-1]
    rows, keys = torch.tril_indices(seq, seq)
    most = 2**bits - 1
    numbers = (weights[..., rows, keys] * most).round().numpy().astype(np.uint8 if bits == 8 else "<u2")
    return base64.b64encode(numbers.tobytes()).decode()


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as people can read it, spaces and line ends too, safe as HTML."""
    return html.escape("".join(SIGNS.get(one, one) for one in _token(tokenizer, token)), quote=False)


def _token(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token; for a part of a character, and an id without any, the name that the tokenizer has."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    return tokenizer.id_to_token(token) or f"[{token}]" if not text or "\ufffd" in text else text
