"""`check("FILE.py:CLASS")`: the verdict on a block whose code is not trusted, and runs in a sandbox."""

import dataclasses
from pathlib import Path

from ..errors import ConfigError
from .judge import judge
from .source.code import locate
from .subject.raised import MissingError
from .subject.sandbox import Sandbox
from .targets import TARGETS
from .verdict import Verdict


def check(
    subject: str,
    *,
    target: str | None = None,
    build: str | None = None,
    call: str | None = None,
    seconds: float = 60.0,
    prenorm_importable: bool = True,
    within: Path | None = None,
) -> Verdict:
    """The verdict on "FILE.py:CLASS" or "package.module:CLASS".

    build, call: how to build and call it, as Python expressions that run inside the sandbox (subject/child/names.py
    has the names that they may use). within: the folder outside of which nothing of the learner's is imported.
    Raises ConfigError if there is nothing to judge: no such file, module, class or target.
    """
    if target is not None and target not in TARGETS:
        raise ConfigError(f"target must be one of {', '.join(TARGETS)}, not {target!r}.")
    code = locate(subject, within=within, lines=(build, call))
    folders = [Path(one) for one in code.readable or (code.root,)]
    with Sandbox(*folders, seconds=seconds, prenorm_importable=prenorm_importable) as sandbox:
        try:
            verdict = judge(sandbox, code, target=target, deadline=sandbox.deadline, build=build, call=call)
        except MissingError as error:
            names = ", ".join(error.names) or "none"
            raise ConfigError(f"{subject}: there is no {code.name!r}; the file defines: {names}.") from None
        return dataclasses.replace(verdict, subject=subject, confinement=sandbox.confinement)
