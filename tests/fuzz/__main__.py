"""Fuzz the loader: python -m tests.fuzz TARGET [SECONDS] for each of NAMES, then python -m tests.fuzz coverage.

The first needs atheris, the second coverage (both in the extra `fuzz`). New inputs go to runs/fuzz/TARGET; `coverage`
replays them with those of tests/fuzz/corpus, says which branches of the loader they reached, fails below 95 %, and with
`--keep` puts the inputs that reach something new into tests/fuzz/corpus.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import coverage

CORPUS = Path(__file__).with_name("corpus")
FOUND = Path("runs/fuzz")
NAMES = ("header", "config", "index", "manifest", "tokenizer")
LEAST = 95.0

# What the loader is made of (room.py asks the machine, not the folder), and the writers in the same files.
LOADER = """files header tensors read_at shards manifest sums verified together fit folder layouts names rope
stored windows quantized writing bookkeeping generation_config tokenizer tokenizer_files families/*"""
WRITERS = """write_\\w+ _staged _remove_leftovers sync_folder advice json_content tensors_content bytes_of
_encode_header
shard_sizes shards_of index_of weight_files remove_\\w+ found_among save _and_record _fields _generation_config
quantization_config to_rows _words config_as_it_came config_to_hugging_face family_of _says_\\w+ _has_ffn_bias
_activation _own_keys weights_to_hugging_face _name_of eos_to_hugging_face rope_to_hugging_face _as_json half_split
check_disk join with_manifest accept _names_read make_folder _written read_boxes _read_box"""


def fuzz(name: str, seconds: int) -> None:
    """Run one fuzzer. Exits with a message and the input where something other than our error was raised."""
    import atheris
    import torch  # noqa: F401  not to be instrumented, as all that is imported before

    with atheris.instrument_imports(include=["prenorm.checkpoint", "prenorm.generation.text"]):
        from . import targets

    target, folder = targets.TARGETS[name], targets.scratch() / name
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        "-max_len=1000",
        "-len_control=0",
        "-timeout=10",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
    ]
    options += [f"-artifact_prefix={found}/", str(found), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *options], lambda data: target(data, folder))
    atheris.Fuzz()


def measure(*, keep: bool) -> int:
    """Replay all inputs; print the share of the loader's branches that they reach. Gives the exit code."""
    import coverage

    source = Path(__file__).parents[2] / "src/prenorm/checkpoint"
    tracer = coverage.Coverage(
        data_file=None, branch=True, include=[str(source / f"{name}.py") for name in LOADER.split()], config_file=False
    )
    for writer in WRITERS.split():
        tracer.exclude(rf"def {writer}\(")
    tracer.exclude("class _HashingWriter")
    # Of disks, memory, other systems and arguments, for which other tests stand.
    for other in (
        "except OSError",
        "except RuntimeError",
        "def _read_at",
        "version_of.file. != header",
        "if not count",
    ):
        tracer.exclude(other)
    for other in ("if dtype is not None and dtype_name", "if path.is_file", "if not path.is_dir"):
        tracer.exclude(other)
    reached: set[tuple[str, int, int]] = set()
    tracer.start()
    from . import targets

    for name, path, content in _inputs():
        targets.TARGETS[name](content, targets.scratch() / name)
        if keep:
            new = {(file, *arc) for file in tracer.get_data().measured_files() for arc in tracer.get_data().arcs(file)}
            if new - reached:
                reached |= new
                (CORPUS / name).mkdir(parents=True, exist_ok=True)
                (CORPUS / name / path.name).write_bytes(content)
    tracer.stop()
    return _report(tracer)


def _report(tracer: "coverage.Coverage") -> int:
    """Print the branches of each file that no input took, and their share of all. Gives the exit code."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        tracer.json_report(outfile=file.name)
        report = json.load(file)
    for name, one in report["files"].items():
        for begin, end in one["missing_branches"]:
            print(f"{Path(name).name}:{begin} -> {end if end > 0 else 'end'} was never taken")
    totals = report["totals"]
    share = 100 * totals["covered_branches"] / totals["num_branches"]
    print(f"{share:.1f} % of the loader's {totals['num_branches']} branches; at least {LEAST} %.")
    return 0 if share >= LEAST else 1


def _inputs() -> Iterator[tuple[str, Path, bytes]]:
    for name in NAMES:
        for folder in (CORPUS / name, FOUND / name):
            for path in sorted(folder.glob("*"), key=lambda path: (path.stat().st_size, path.name)):
                yield name, path, path.read_bytes()


if __name__ == "__main__":
    os.environ.setdefault("RUST_BACKTRACE", "0")
    match sys.argv[1:]:
        case ["coverage", *options]:
            sys.exit(measure(keep="--keep" in options))
        case [name]:
            fuzz(name, 600)
        case [name, seconds]:
            fuzz(name, int(seconds))
