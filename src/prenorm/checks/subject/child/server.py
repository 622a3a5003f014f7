"""The fork server, a script of its own: it loads torch once, and forks a child for each sandbox that is asked for.

Run as `python -I server.py CONTROL LIBRARIES`: CONTROL is the descriptor of a socket to the parent, LIBRARIES a JSON
list of folders to import from beside Python's own. Each order on the socket is a line of JSON with five descriptors.
It ends when the parent does, by the end of that socket. It never runs a learner's code itself.
"""

import contextlib
import functools
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import sysconfig
import types
from typing import Any

PACKAGE = "_prenorm_child"  # not a name that a learner's file could have, as `wire` or `limits` would be


def main() -> None:
    """Say "ready" and then obey, until the parent is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path += [folder for folder in json.loads(sys.argv[2]) if folder not in sys.path]
    sys.argv = [""]
    sys.dont_write_bytecode = True
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 256 if hard == resource.RLIM_INFINITY else min(256, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))  # closing all of them takes a moment where there are many
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisor, worker = _load("supervisor"), _load("worker")
    _warm_up()
    control.sendall(b"r")
    while (order := _receive(control)) is not None:
        plan, package, descriptors = order
        if os.fork() == 0:
            with contextlib.suppress(BaseException):
                supervisor.keep(plan, descriptors, functools.partial(worker.work, plan, package))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(b"s")


def _load(name: str) -> types.ModuleType:
    """A module of this folder, as part of a package that is on no search path."""
    if PACKAGE not in sys.modules:
        folder = os.path.dirname(os.path.abspath(__file__))
        source = os.path.join(folder, "__init__.py")
        spec = importlib.util.spec_from_file_location(PACKAGE, source, submodule_search_locations=[folder])
        assert spec is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACKAGE}.{name}")


def _warm_up() -> None:
    """What every child would load again: the libraries of a matrix product, and modules that are imported late.

    Nothing is compiled in a child, but torch imports Dynamo, Inductor and sympy at its first operation on the meta
    device, and where it is told to be deterministic or sends a given gradient back. That takes as long as a whole
    judgement.
    """
    import torch

    torch.set_num_threads(1)
    torch.ones(8, 8) @ torch.ones(8, 8)
    torch.nn.functional.linear(torch.empty(8, 8, device="meta"), torch.empty(8, 8, device="meta"))
    torch.use_deterministic_algorithms(False)
    for name in ("torch.utils._python_dispatch", "torch.utils.checkpoint", "numpy"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _receive(control: socket.socket) -> tuple[Any, str | None, list[int]] | None:
    text, descriptors = b"", []
    while not text.endswith(b"\n"):
        piece, more, _, _ = socket.recv_fds(control, 1 << 16, 5)
        if not piece:
            return None
        text += piece
        descriptors += more
    order = json.loads(text)
    confine, limits = _load("confine"), _load("limits")
    plan = confine.Plan(
        readable=(*_python(), *order["readable"]),
        hidden=() if order["package"] else tuple({*order["hidden"], *_every_copy_of_prenorm()}),
        scratch=order["scratch"],
        seconds=order["seconds"],
        limits=limits.Limits(**order["limits"]),
        without=frozenset(order["without"]),
    )
    return plan, order["package"], descriptors


def _every_copy_of_prenorm() -> list[str]:
    copies = [os.path.join(folder, "prenorm") for folder in sys.path]
    return [spelling for copy in copies if os.path.isdir(copy) for spelling in (copy, os.path.realpath(copy))]


def _python() -> list[str]:
    """Where Python, its packages and the libraries of the system lie."""
    folders = [folder for folder in sys.path if os.path.isabs(folder)]
    folders += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for prefix in {sys.prefix, sys.base_prefix, "/usr", "/usr/local", "/"}:
        folders += [os.path.join(prefix, "lib"), os.path.join(prefix, "lib64")]
    folders += [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(folder)]
    folders += ["/etc/ld.so.cache", "/etc/localtime", os.path.join(sys.prefix, "pyvenv.cfg")]
    return sorted({spelling for folder in folders for spelling in (folder, os.path.realpath(folder))})


if __name__ == "__main__":
    main()
    os._exit(0)  # tearing torch down takes a second, and the parent waits for it
