"""Opens folders one by one, each in a process of its own that has everything imported, and prints what came of it.

python -m tests.checkpoint.hostile.opening FOLDER ... prints one JSON object a line: the folder, the error's type and
text (null where it opened), the seconds that the processor worked, the kilobytes by which memory grew, and events of
unpickling.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

import prenorm
from prenorm import TransformerLM
from prenorm.checkpoint.generation_config import read_generation_config, settings_from_hugging_face
from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.generation.text import TextGenerator

PICKLED: list[str] = []


def open_all(folder: Path) -> None:
    """What `prenorm generate` opens, and one step of it."""
    model = TransformerLM.from_pretrained(folder)
    tokenizer = open_tokenizer(folder)
    settings_from_hugging_face(read_generation_config(folder) or {}, "generation_config.json")
    TextGenerator(model, tokenizer).generate(["a"], max_new_tokens=1)


def measured(folder: Path) -> dict[str, Any]:
    error = None
    before, start = _kilobytes("VmRSS"), time.process_time()
    try:
        open_all(folder)
    except BaseException as raised:
        error = raised
    return {
        "folder": folder.name,
        "error": None if error is None else type(error).__name__,
        "ours": isinstance(error, prenorm.errors.PrenormError),
        "text": str(error).encode("utf-8", "backslashreplace").decode(),
        "seconds": time.process_time() - start,
        "kilobytes": _kilobytes("VmHWM") - before,
        "pickled": PICKLED,
    }


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def _watch(event: str, _: Any) -> None:
    if event.startswith(("pickle.", "marshal.load", "exec", "os.system", "subprocess.", "socket.")):
        PICKLED.append(event)


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:  # a panic of Rust prints a trace
        os.dup2(nowhere.fileno(), 2)
    good, *others = map(Path, folders)
    open_all(good)  # what loads on first use is no cost of a folder
    print(json.dumps({"ready": True}), flush=True)
    sys.addaudithook(_watch)
    for folder in others:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
            print(json.dumps(measured(folder)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"folder": folder.name, "error": f"killed by {status}", "ours": False}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
