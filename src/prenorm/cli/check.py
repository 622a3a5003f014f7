"""`prenorm check FILE.py:CLASS`: names the faults of a block that somebody else wrote."""

import contextlib
import datetime
import functools
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import ConfigError, PrenormError
from .exit_codes import INTERRUPTED
from .flags import flags_from

if TYPE_CHECKING:
    from ..checks.report.handed_in import Submission
    from ..checks.report.result import Result

DAY = 86_400
Target = Literal["paper", "cs336", "llama", "llama-original", "qwen2", "qwen3", "gpt-neox", "causal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckFlags:
    """Judge a Transformer block that somebody else wrote: what was checked, and every fault by name.

    How it is built and called is guessed from its signatures and printed; --build and --call correct the guess.
    Its code runs in a sandbox, and only its numbers count.
    Exit code 0: no fault. 1: faults. 2: nothing to judge, nothing that could be judged, or the checker itself failed.
    With --batch: 0 if all passed, 2 if none could be judged, 130 if it was stopped, and otherwise 1.
    """

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE.py:CLASS")]
    """Or package.module:CLASS, or a function that returns a block. With --batch, what to look for in each of them."""

    target: Annotated[Target | None, tyro.conf.arg(metavar="NAME")] = None
    """The design whose conventions must be met. By default conventions are reported, and are no faults."""

    build: Annotated[str | None, tyro.conf.arg(metavar="EXPR")] = None
    """How it is built, such as "Block(d_model, num_heads, d_ff, rope=RoPE(theta, head_dim, max_seq_len))". Beside the
    file's own names there are d_model num_heads num_kv_heads head_dim d_ff max_seq_len theta eps dropout causal dtype
    device, config(...) and torch."""

    call: Annotated[str | None, tyro.conf.arg(metavar="EXPR")] = None
    """How it is called, such as "block(x, freqs_cis[:seq], mask)". Beside those names there are block x batch seq
    positions mask added(mask) cos sin freqs_cis."""

    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    """The time for one block, all checks together."""

    format: Annotated[
        Literal["text", "json", "junit", "gradescope", "csv", "html"], tyro.conf.arg(metavar="FORMAT")
    ] = "text"
    """text, json, junit (for CI), gradescope (for its autograder), or, with --batch, csv or html (a page)."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """The same as --format json: one JSON document on stdout, and nothing else."""

    batch: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Judge every submission in this folder: each subfolder, .py file, notebook and zip."""

    out: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """With --batch: write the results to this file, too, in the format of its ending: .csv, .html, .json, .xml (junit)
    or .txt. May be given several times."""


def parse(argv: list[str]) -> CheckFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: CheckFlags = flags_from(CheckFlags, argv, prog="prenorm check")
    return flags


def run(flags: CheckFlags) -> int:
    """Judge, print the verdict, and return the exit code."""
    if not 0 < flags.timeout <= DAY:
        raise ConfigError(f"--timeout must be more than 0 and at most {DAY} seconds, but it is {flags.timeout:g}.")
    form = "json" if flags.json else flags.format
    if flags.json and flags.format not in ("text", "json"):
        raise ConfigError(f"--json and --format {flags.format} are two formats; give one of them.")
    if flags.out and flags.batch is None:
        raise ConfigError("--out has the results of many; it goes with --batch.")
    return _run_batch(flags, flags.batch, form) if flags.batch is not None else _run_one(flags, form)


def _run_one(flags: CheckFlags, form: str) -> int:
    if form in ("csv", "html"):
        raise ConfigError(f"{form} has a row a submission; --format {form} goes with --batch.")
    try:
        return _judge_one(flags, form)
    except PrenormError as error:
        if form == "gradescope":  # without results.json, the page says that the autograder is broken
            from ..checks.report.gradescope import gradescope_problem

            print(json.dumps(gradescope_problem(str(error)), indent=2))
        elif form == "junit":
            from ..checks.report.junit import junit

            print(junit([], {flags.subject: str(error)}))
        raise


def _judge_one(flags: CheckFlags, form: str) -> int:
    from ..checks.source.code import locate
    from ..checks.subject.fork_server import running

    locate(flags.subject)  # what is not there is said before anything is loaded
    running()  # another process loads torch while this one does
    from rich.console import Console
    from rich.markup import escape

    from ..checks.check import check

    # A spinner on stderr, where a person looks at it.
    with Console(stderr=True, quiet=not sys.stderr.isatty()).status(escape(f"checking {flags.subject}")):
        verdict = check(flags.subject, target=flags.target, build=flags.build, call=flags.call, seconds=flags.timeout)
    if form == "json":
        print(json.dumps(verdict.to_json(), indent=2))
    elif form == "junit":
        from ..checks.report.junit import junit

        print(junit([verdict]))
    elif form == "gradescope":
        from ..checks.report.gradescope import gradescope

        print(json.dumps(gradescope(verdict), indent=2))
    else:
        from ..checks.report.text import print_verdict

        print_verdict(verdict, Console(highlight=False))
    return verdict.exit_code


def _run_batch(flags: CheckFlags, folder: Path, form: str) -> int:
    from rich.console import Console

    from ..checks.report import outputs
    from ..checks.report.alike import noted
    from ..checks.report.handed_in import find_submissions
    from ..checks.report.result import STOPPED
    from ..checks.report.table import print_table
    from ..checks.subject.recipe import given
    from ..checks.verdict import NOT_JUDGED
    from ..training.environment import versions

    if form == "gradescope":
        raise ConfigError("gradescope wants one results.json a submission; --format gradescope goes without --batch.")
    for what, text in (("build", flags.build), ("call", flags.call)):
        if text is not None:
            given(text, what)  # a mistake is said once, not in every row
    for path in flags.out:
        outputs.check_path(path, folder)
    with tempfile.TemporaryDirectory(prefix="prenorm-batch-") as unpacked:
        submissions = noted(find_submissions(folder, flags.subject, unpacked=Path(unpacked)))
        results = _checked(flags, submissions)
    title = f"{flags.subject} in {folder}"
    design = f"target {flags.target}" if flags.target else "no target: conventions are no faults"
    about = f"{design}; prenorm {versions()['prenorm']}; {datetime.date.today():%d %B %Y}"
    for path in flags.out:
        outputs.save(results, path, title, about)
    if form == "text":
        print_table(results, Console())
    else:
        print(outputs.written(results, form, title, about), end="")
    if any(one.problem == STOPPED for one in results):
        return INTERRUPTED
    outcomes = {result.outcome for result in results}
    if outcomes == {"passed"}:
        return 0
    return NOT_JUDGED if outcomes == {"problem"} else 1


def _checked(flags: CheckFlags, submissions: "list[Submission]") -> "list[Result]":
    """The results, in order; if it is stopped by Ctrl-C or SIGTERM, the others are results, too, which say so."""
    from rich.console import Console
    from rich.progress import track

    from ..checks.check import check
    from ..checks.report.batch import check_all
    from ..checks.report.result import STOPPED, in_order, without

    judge = functools.partial(check, target=flags.target, build=flags.build, call=flags.call, seconds=flags.timeout)
    console = Console(stderr=True)
    results: list[Result] = []
    with contextlib.closing(check_all(submissions, judge)) as found, contextlib.suppress(KeyboardInterrupt):
        shown = track(
            found, "checking", total=len(submissions), console=console, transient=True, disable=not console.is_terminal
        )
        results.extend(shown)  # what came before a Ctrl-C stays
    there = {one.name for one in results}
    return in_order([*results, *(without(one, STOPPED) for one in submissions if one.name not in there)], submissions)
