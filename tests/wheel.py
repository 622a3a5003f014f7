"""python -m tests.wheel [WHEEL]: the wheel in a new environment, without a compiler and with an empty home directory.

`make test-wheel` builds the wheel first; without a name it is the newest in dist/. The environment has what pip
installs with the wheel and nothing else, torch of the version in constraints.txt. The kernels must run there from the
wheel, give what the formulas give, and leave nothing in the home directory; and every command must answer --help.
"""

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Run in the new environment, which has no tests: a model in float32 and bfloat16, decoding included.
MODEL = """
import shutil, sys
import torch
import prenorm
from prenorm import ModelConfig, TransformerLM, explain, use_backend
from prenorm.kernels.cpu import native

assert shutil.which("g++") is None
assert prenorm.__file__.startswith(sys.prefix), prenorm.__file__
which = native.load().which
assert which.endswith(", from the wheel"), which
runs = {choice.op: choice.runs for choice in explain() if choice.device == "cpu"}
assert runs["rms_norm"] != "formula" and runs["decode_step"] != "formula", runs

torch.manual_seed(0)
token_ids = torch.randint(97, (2, 17))
for dtype, rtol in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
    model = TransformerLM(ModelConfig(97, 64, 2, 2), dtype=dtype)
    found = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            loss = model.loss(token_ids[:, :-1], token_ids[:, 1:])
            found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
            if dtype == torch.float32:
                found[-1].append(model.eval().generate([[1, 2, 3], [4]], max_new_tokens=8, temperature=0))
            model.train()
    for ours, formula in zip(*found):
        if isinstance(ours, list):
            assert ours == formula, (ours, formula)
        else:
            assert (ours - formula).norm() <= rtol * formula.norm(), (ours, formula)
print(which)
"""


def main(arguments: Sequence[str]) -> int:
    """0 where the wheel does all of it."""
    wheels = sorted(ROOT.glob("dist/prenorm-*.whl"), key=lambda path: path.stat().st_mtime)
    chosen = [Path(one).resolve() for one in arguments] or wheels[-1:]
    if len(chosen) != 1 or not chosen[0].is_file():
        print("name one wheel, or build one with make wheel", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="prenorm-wheel-") as scratch:
        failed = failures(chosen[0], Path(scratch))
    print("\n".join(f"failed: {one}" for one in failed) or "all passed")
    return bool(failed)


def failures(wheel: Path, scratch: Path) -> list[str]:
    """What does not work once the wheel is installed."""
    programs, home, work = scratch / "env" / "bin", scratch / "home", scratch / "work"
    home.mkdir()
    work.mkdir()
    venv.create(programs.parent, with_pip=True)
    python, install = programs / "python", ["install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run([python, "-m", "pip", *install], check=True)
    environment = {"PATH": str(programs), "HOME": str(home), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    names = "from prenorm.cli.main import COMMANDS; print(*COMMANDS)"
    known = subprocess.run([python, "-c", names], env=environment, capture_output=True, text=True, check=True).stdout
    commands: dict[str, list[str | Path]] = {
        "a model with the kernels": [python, "-c", MODEL],
        "pip check": [python, "-m", "pip", "check"],
        "prenorm --help": [programs / "prenorm", "--help"],
        **{f"prenorm {name} --help": [programs / "prenorm", name, "--help"] for name in known.split()},
    }
    failed = []
    for name, command in commands.items():
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        print(f"{name}: exit code {done.returncode}", flush=True)
        if done.returncode != 0:
            print(done.stderr or done.stdout, flush=True)
            failed.append(name)
    left = [str(path.relative_to(home)) for path in sorted(home.rglob("*"))]
    return [*failed, *(f"{one} was written into the home directory" for one in left)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
