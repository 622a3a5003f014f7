"""llama.cpp's own converter takes the folders that we save, with a sentencepiece tokenizer made here.

It needs vendor/llama.cpp of llama-cpp-python's source archive (the script with conversion/ and gguf-py/), whose place
LLAMA_CPP names, and the packages sentencepiece and llama-cpp-python.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prenorm import ModelConfig, TransformerLM

TEXT = "the pre-norm block is two lines that everyone knows and this is a text to make a tokenizer of, again and again"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "head_dim": 16}], ids=["llama", "qwen3"])
def test_the_converter_takes_our_folder_and_llama_cpp_gives_the_same_greedy_tokens(tmp_path, options):
    if "LLAMA_CPP" not in os.environ:
        pytest.skip("LLAMA_CPP does not say where llama.cpp's convert_hf_to_gguf.py is")
    sentencepiece, llama_cpp = pytest.importorskip("sentencepiece"), pytest.importorskip("llama_cpp")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "text").write_text("\n".join([TEXT] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    torch.manual_seed(0)
    config = ModelConfig(pieces.vocab_size(), 64, 2, 4, num_kv_heads=2, d_ff=96, max_seq_len=128, **options)
    model = TransformerLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter.ndim == 1) + 0.3 * torch.randn_like(parameter))
    model.eos_token_ids = (2,)
    model.save_pretrained(folder)
    script = Path(os.environ["LLAMA_CPP"]) / "convert_hf_to_gguf.py"
    command = [sys.executable, script, folder, "--outtype", "f32", "--outfile", tmp_path / "model.gguf"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=128, n_threads=1, verbose=False, type_k=0, type_v=0)
    prompt = [1, *pieces.encode("this is a text")]
    assert theirs.tokenize(b"this is a text", add_bos=True) == prompt
    (wanted,) = model.generate([prompt], max_new_tokens=40, temperature=0)
    tokens = [token for token, _ in zip(theirs.generate(prompt, temp=0.0, repeat_penalty=1.0), wanted, strict=False)]
    assert tokens == wanted
