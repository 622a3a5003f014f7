"""The time until the first logits of a folder, and the memory it takes, against transformers: `make bench-open`.

Each opens the same folder in a process of its own that has everything imported, in turn, the files in the page cache;
the clock runs from the call of from_pretrained until the logits of one token are there. The folder is prenorm's, whose
manifest prenorm compares, or transformers', which has none. The peak of resident memory is above that after imports,
pages of mapped files included; processor seconds are those of all threads, of the program and of the system. Nothing
else should be running.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import refuse_while_busy
from rich.console import Console
from rich.table import Table

from prenorm import ModelConfig
from prenorm.checkpoint.folder import save
from prenorm.checkpoint.names import parameters_of

OPEN = """
import json, resource, sys, time, torch
from pathlib import Path
from typing import Any
which, tiny, folder, dtype = sys.argv[1:]
dtype = getattr(torch, dtype)
torch.set_num_threads(2)
if which == "prenorm":
    from prenorm import TransformerLM
    open_folder = lambda path: TransformerLM.from_pretrained(path, dtype=dtype)
else:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    logging.disable_progress_bar()
    open_folder = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))
def first_logits(path):
    with torch.no_grad():
        return open_folder(path)(torch.tensor([[1]]))
first_logits(tiny)
Path("/proc/self/clear_refs").write_text("5")
def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
before, start, used = kilobytes("VmRSS"), time.perf_counter(), processor_seconds()
first_logits(folder)
seconds, used, peak = time.perf_counter() - start, processor_seconds() - used, kilobytes("VmHWM") - before
print(json.dumps({"seconds": seconds, "processor": used, "bytes": 1024 * peak}))
"""
SAVE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def main() -> None:
    """Print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights in float32")
    parser.add_argument("--anyway", action="store_true", help="on a busy machine, too: the numbers then say little")
    options = parser.parse_args()
    if not options.anyway:
        refuse_while_busy()
    d_model = int((options.megabytes * 1e6 / 4 / 144) ** 0.5) // 16 * 16
    config = ModelConfig(24 * d_model, d_model, 8, 8, d_ff=3 * d_model, max_seq_len=64)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        tiny, folder, theirs = f"{root}/tiny", f"{root}/model", f"{root}/theirs"
        for path, shape in ((tiny, ModelConfig(16, 16, 1, 2)), (folder, config)):
            save(path, shape, {one.name: 0.02 * torch.randn(one.shape) for one in parameters_of(shape)})
        subprocess.run([sys.executable, "-c", SAVE, folder, theirs], capture_output=True, check=True)
        for dtype, path in ((dtype, path) for dtype in ("float32", "bfloat16") for path in (folder, theirs)):
            size = sum(torch.Size(one.shape).numel() for one in parameters_of(config)) * getattr(torch, dtype).itemsize
            results: dict[str, list[dict[str, float]]] = {"prenorm": [], "transformers": []}
            for _ in range(options.rounds):
                for which, measured in results.items():
                    command = [sys.executable, "-c", OPEN, which, tiny, path, dtype]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    measured.append(json.loads(done.stdout))
            row: dict[str, Any] = {"dtype": dtype, "folder": "prenorm's" if path == folder else "transformers'"}
            for which, measured in results.items():
                middle = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
                row |= {f"{which}_seconds": middle["seconds"], f"{which}_processor": middle["processor"]}
                row |= {f"{which}_peak": middle["bytes"] / size}
            rows.append({**row, "ratio": row["prenorm_seconds"] / row["transformers_seconds"]})
    columns = {
        "prenorm_seconds": "prenorm, s",
        "transformers_seconds": "transformers, s",
        "ratio": "ratio",
        "prenorm_processor": "prenorm, processor s",
        "transformers_processor": "transformers, processor s",
        "prenorm_peak": "prenorm, peak / model",
        "transformers_peak": "transformers, peak / model",
    }
    table = Table(title=f"A folder of {options.megabytes} MB in float32, until the first logits (medians)")
    for column in ("dtype", "folder", *columns.values()):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["dtype"], row["folder"], *(f"{row[key]:.2f}" for key in columns))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
