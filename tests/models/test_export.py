"""Exported with any batch size and length, saved, loaded, run: by torch.export and by ONNX Runtime."""

import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerBlock, TransformerLM

from ..oracle.inputs import integers, normal, randomise, segments
from ..oracle.tolerance import array, assert_exact, assert_rounding_alone

# What torch and its exporters say of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("shapes_unchecked"),
]

VOCAB, MAX_SEQ_LEN = 11, 64
SIZES = ((3, 9), (1, 5), (4, 1), (1, 1), (2, MAX_SEQ_LEN))
OPTIONS: tuple[Any, ...] = (
    {},
    {"window": 6, "num_kv_heads": 1, "qk_norm": True, "tie_embeddings": True, "rope_interleaved": True},
)


def language_model(dtype, **options):
    config = ModelConfig(VOCAB, d_model=16, num_layers=2, num_heads=2, d_ff=12, max_seq_len=MAX_SEQ_LEN, **options)
    return randomise(TransformerLM(config, dtype=dtype)).eval()


class Packed(torch.nn.Module):
    """A model whose second input is segment_ids, because exporters pass inputs by position."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token_ids, segment_ids):
        return self.model(token_ids, segment_ids=segment_ids)


def packed_rows(batch, seq):
    """Rows of documents, the second shorter than the first, and padding."""
    row = segments([(0, 3), (1, 2), (1, 0), (-1, 2), (0, MAX_SEQ_LEN)])[:seq]
    return row.repeat(batch, 1)


def cases(dtype):
    """name -> module, and its inputs for a batch size and a length."""
    block = TransformerBlock(16, 2, 12, causal=True, window=5, max_seq_len=MAX_SEQ_LEN, dtype=dtype)
    both = EncoderDecoder(EncoderDecoderConfig(VOCAB, 16, 1, 2, max_seq_len=MAX_SEQ_LEN), dtype=dtype)
    return {
        "block": (randomise(block).eval(), lambda b, s: (normal(b, s, 16, dtype=dtype),)),
        "model": (language_model(dtype), lambda b, s: (integers(b, s, limit=VOCAB),)),
        "model with every option": (language_model(dtype, **OPTIONS[1]), lambda b, s: (integers(b, s, limit=VOCAB),)),
        "documents": (
            Packed(language_model(dtype, window=3)).eval(),
            lambda b, s: (integers(b, s, limit=VOCAB), packed_rows(b, s)),
        ),
        "encoder and decoder": (
            randomise(both).eval(),
            lambda b, s: (integers(b, 7, limit=VOCAB), integers(b, s, limit=VOCAB, seed=1)),
        ),
    }


def any_size(inputs):
    """Dynamic shapes: every input has any batch size and any length, including the shortest and the longest."""
    batch, seq, other = Dim("batch", min=1), Dim("seq", min=1, max=MAX_SEQ_LEN), Dim("other", min=1, max=MAX_SEQ_LEN)
    lengths = {x.shape[1] for x in inputs}
    return tuple({0: batch, 1: seq if len(lengths) == 1 or i else other} for i, x in enumerate(inputs))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", cases(torch.float64))
@torch.no_grad()
def test_saved_and_loaded_it_runs_at_any_size(name):
    module, inputs = cases(torch.float64)[name]
    example, file = inputs(2, 8), io.BytesIO()
    torch.export.save(torch.export.export(module, example, dynamic_shapes=any_size(example)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, seq in SIZES:
        assert_exact(loaded(*inputs(batch, seq)), array(module(*inputs(batch, seq))))


@torch.no_grad()
def test_an_exported_model_still_checks_its_inputs():
    model, ids = language_model(torch.float64), integers(2, 8, limit=VOCAB)
    loaded = torch.export.export(model, (ids,), dynamic_shapes=any_size((ids,))).module()
    with pytest.raises(RuntimeError, match="token ids"):
        loaded(ids + VOCAB)
    with pytest.raises(Exception, match="64"):
        loaded(integers(2, MAX_SEQ_LEN + 1, limit=VOCAB))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", cases(torch.float32))
@torch.no_grad()
def test_onnx_runtime_gives_the_same_numbers_at_any_size(name, tmp_path):
    module, inputs = cases(torch.float32)[name]
    exact, _ = cases(torch.float64)[name]
    exact.load_state_dict(module.state_dict())
    example, path = inputs(2, 8), tmp_path / "model.onnx"
    torch.onnx.export(module, example, path, dynamic_shapes=any_size(example), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, seq in SIZES:
        given = inputs(batch, seq)
        fed = {put.name: x.numpy() for put, x in zip(session.get_inputs(), given, strict=True)}
        (y,) = session.run(None, fed)
        assert isinstance(y, np.ndarray)
        wanted = exact(*(x.double() if x.is_floating_point() else x for x in given))
        assert_rounding_alone(torch.from_numpy(y), array(wanted), torch.float32, terms=64)
