"""What a file expects around it when it is imported: a GPU, the arguments of a command line, folders for results."""

import argparse
import builtins
import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.jit import _builtins
from torch.nn.attention import flex_attention
from torch.utils import _device

from .flexible import flexible

ON_A_DEVICE = (
    "arange as_tensor asarray empty empty_like empty_strided eye full full_like linspace logspace ones ones_like rand "
    "rand_like randint randint_like randn randn_like randperm scalar_tensor set_default_device tensor tril_indices "
    "triu_indices zeros zeros_like"
)
"""Functions of torch that take a device, and, below, methods of tensors."""
NEW = "new_empty new_full new_ones new_tensor new_zeros"


class NoGpu(contextlib.AbstractContextManager[None]):
    """Where there is no GPU, what asks for one runs on the CPU meanwhile: what its author ran is judged all the same.

    .cuda(), .to("cuda") and device="cuda" do nothing, and FlexAttention is computed as its formula. notes: takes what
    was left out.
    """

    def __init__(self, notes: dict[str, str]) -> None:
        self._patches: list[tuple[Any, str, Any]] = []
        self._before: list[tuple[Any, str, Any]] = []
        if torch.cuda.is_available():
            return
        _device._device_constructors()  # torch asks for these functions once, and must see its own
        movable: list[Any] = [torch.Tensor, torch.nn.Module]
        for owner in movable:
            self._patches += [(owner, "cuda", _stays(notes)), (owner, "to", _elsewhere(owner.to, notes))]
        for place, names in ((torch, ON_A_DEVICE), (torch.Tensor, NEW)):
            self._patches += [(place, name, _here(getattr(place, name), notes)) for name in names.split()]
        self._patches.append((flex_attention, "flex_attention", flexible(notes)))

    def __enter__(self) -> None:
        self._before = [(owner, name, vars(owner).get(name)) for owner, name, _ in self._patches]
        for owner, name, value in self._patches:
            setattr(owner, name, value)

    def __exit__(self, *_: object) -> None:
        for owner, name, value in self._before:
            if value is None:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _stays(notes: dict[str, str]) -> Callable[..., Any]:
    def stays(self: Any, *_: Any, **__: Any) -> Any:
        notes["cuda"] = "there is no GPU here: .cuda() does nothing"
        return self

    return stays


def _elsewhere(to: Callable[..., Any], notes: dict[str, str]) -> Callable[..., Any]:
    @functools.wraps(to)
    def moved(self: Any, *args: Any, **keywords: Any) -> Any:
        if not any(_is_cuda(one) for one in (*args, *keywords.values())):
            return to(self, *args, **keywords)
        notes["cuda"] = "there is no GPU here: .cuda() and .to('cuda') do nothing"
        args = tuple(one for one in args if not _is_cuda(one))
        keywords = {name: one for name, one in keywords.items() if not _is_cuda(one)}
        return to(self, *args, **keywords) if args or keywords.keys() & {"dtype", "memory_format"} else self

    return moved


def _here(make: Callable[..., Any], notes: dict[str, str]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*args: Any, **keywords: Any) -> Any:
        if any(_is_cuda(one) for one in (*args, keywords.get("device"))):
            notes["device"] = "there is no GPU here: device='cuda' is left out"
            args = tuple(None if _is_cuda(one) else one for one in args)
            keywords = {name: one for name, one in keywords.items() if not _is_cuda(one)}
        return make(*args, **keywords)

    if operator := _builtins._find_builtin(make):  # TorchScript compiles it as what it stands for
        _builtins._register_builtin(made, operator)
    return made


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
    make, read_or_write, look_up = os.mkdir, builtins.open, os.stat
    unmade: set[str] = set()

    def mkdir(path: Any, *args: Any, **keywords: Any) -> None:
        try:
            make(path, *args, **keywords)
        except OSError as error:
            beneath = error.errno == errno.ENOENT and os.path.dirname(os.path.abspath(path)) in unmade
            if error.errno not in REFUSED and not beneath:
                raise
            unmade.add(os.path.abspath(path))
            notes["folders"] = f"{os.path.basename(path)} is not made: nothing is written beside the file"

    def open_(path: Any, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        if isinstance(path, str | os.PathLike) and file is not None and not {*mode} & {*"wax"}:
            beside = os.path.join(os.path.dirname(file), path)
            path = beside if not os.path.lexists(path) and os.path.exists(beside) else path
        try:
            return read_or_write(path, mode, *args, **keywords)
        except OSError as error:
            if error.errno not in REFUSED or not {*mode} & {*"wax"}:
                raise
            notes["files"] = f"{os.path.basename(path)} is not written: nothing is written beside the file"
            return read_or_write(os.devnull, mode.replace("x", "w"), *args, **keywords)

    def stat(path: Any, *args: Any, **keywords: Any) -> os.stat_result:
        try:
            return look_up(path, *args, **keywords)
        except FileNotFoundError:
            if not isinstance(path, str | os.PathLike) or file is None:
                raise
            return look_up(os.path.join(os.path.dirname(file), path), *args, **keywords)

    os.mkdir, os.stat = mkdir, stat
    builtins.open = io.open = open_  # type: ignore[assignment]  # pathlib takes that of io
    try:
        yield
    finally:
        os.mkdir, os.stat = make, look_up
        builtins.open = io.open = read_or_write


REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
