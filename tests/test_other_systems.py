"""On Windows and macOS everything works except the C++ kernels: tested on a Linux without what they lack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import prenorm

PROGRAM = """
import os, platform, sys
import torch._dynamo, safetensors.torch, jaxtyping  # they and what they load do not pretend
sys.platform = {platform!r}
platform.machine = lambda: "arm64"
if {platform!r} == "win32":
    sys.modules["fcntl"] = None
    del os.O_DIRECTORY
    platform.processor = lambda: "ARMv8 Family 8 Model 1, Qualcomm"
import prenorm
from prenorm import ModelConfig, TransformerLM
for name in prenorm.__all__:
    getattr(prenorm, name)
model = TransformerLM(ModelConfig(vocab_size=10, d_model=32, num_layers=1, num_heads=1))
model.loss(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)).backward()
model.eval().save_pretrained({folder!r})
assert model.generate([[1, 2]], max_new_tokens=2) is not None
rows = [row for row in prenorm.explain() if row.op == "rms_norm"]
assert rows
assert all(row.runs == "formula" and "for Linux on x86_64 and aarch64" in row.why for row in rows), rows
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_models_train_write_and_are_saved_with_the_formulas(tmp_path, platform):
    program = PROGRAM.format(platform=platform, folder=str(tmp_path / "model"))
    environment = {**os.environ, "PYTHONPATH": str(Path(prenorm.__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert (tmp_path / "model" / "model.safetensors").exists()
