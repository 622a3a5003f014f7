"""What a file expects around it when it is imported: a GPU, the arguments of a command line, folders for results."""

import argparse
import builtins
import contextlib
import errno
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


def leave_out_cuda(notes: dict[str, str]) -> None:
    """Where there is no GPU, .cuda() and .to("cuda") do nothing: what its author ran on one is judged all the same."""
    import torch

    if torch.cuda.is_available():
        return

    def stays(self: Any, *_: Any, **__: Any) -> Any:
        notes["cuda"] = "there is no GPU here: .cuda() does nothing"
        return self

    def elsewhere(to: Callable[..., Any]) -> Callable[..., Any]:
        plain = inspect.unwrap(to)  # another file may have been imported before

        @functools.wraps(plain)
        def moved(self: Any, *args: Any, **keywords: Any) -> Any:
            if not any(_is_cuda(one) for one in (*args, *keywords.values())):
                return plain(self, *args, **keywords)
            notes["cuda"] = "there is no GPU here: .cuda() and .to('cuda') do nothing"
            args = tuple(one for one in args if not _is_cuda(one))
            keywords = {name: one for name, one in keywords.items() if not _is_cuda(one)}
            return plain(self, *args, **keywords) if args or keywords.keys() & {"dtype", "memory_format"} else self

        return moved

    torch.Tensor.cuda = stays  # type: ignore[method-assign]
    torch.nn.Module.cuda = stays  # type: ignore[method-assign]
    torch.Tensor.to = elsewhere(torch.Tensor.to)  # type: ignore[method-assign]
    torch.nn.Module.to = elsewhere(torch.nn.Module.to)  # type: ignore[method-assign]


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, str) and value.startswith("cuda")) or getattr(value, "type", None) == "cuda"


@contextlib.contextmanager
def no_arguments(file: str | None) -> Iterator[None]:
    """Files that parse arguments find none, and where some are required, their defaults."""
    plain_error, argv = argparse.ArgumentParser.parse_known_args, sys.argv

    def lenient(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if args is None or list(args) == sys.argv[1:]:
            for action in self._actions:
                action.required = False
                if not action.option_strings and action.nargs is None:
                    action.nargs = "?"
            args = []
        return plain_error(self, args, namespace)

    sys.argv = [file or ""]
    argparse.ArgumentParser.parse_known_args = lenient  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.argv = argv
        argparse.ArgumentParser.parse_known_args = plain_error  # type: ignore[method-assign]


@contextlib.contextmanager
def no_results(notes: dict[str, str], file: str | None) -> Iterator[None]:
    """Files that make a folder or a file for their results, where nothing may be written, go on without it.

    What they read by a relative path may lie beside them, as where they are run.
    """
    make, read_or_write = os.mkdir, builtins.open

    def mkdir(path: Any, *args: Any, **keywords: Any) -> None:
        try:
            make(path, *args, **keywords)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            notes["folders"] = f"{os.path.basename(path)} is not made: nothing is written beside the file"

    def open_(path: Any, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        if isinstance(path, str | os.PathLike) and file is not None and not {*mode} & {*"wax"}:
            beside = os.path.join(os.path.dirname(file), path)
            path = beside if not os.path.exists(path) and os.path.exists(beside) else path
        try:
            return read_or_write(path, mode, *args, **keywords)
        except OSError as error:
            if error.errno not in REFUSED or not {*mode} & {*"wax"}:
                raise
            notes["files"] = f"{os.path.basename(path)} is not written: nothing is written beside the file"
            return read_or_write(os.devnull, mode.replace("x", "w"), *args, **keywords)

    os.mkdir = mkdir
    builtins.open = io.open = open_  # type: ignore[assignment]  # pathlib takes that of io
    try:
        yield
    finally:
        os.mkdir = make
        builtins.open = io.open = read_or_write


REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
