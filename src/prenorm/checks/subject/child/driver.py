"""What runs beside a learner's code: it loads a class, builds it and runs it, and gives back raw numbers.

It judges nothing: whatever the learner's code does to this process, a wrong number stays a wrong number.
Imports the standard library and torch only, so that prenorm need not be importable where it runs.
A request and its reply are dictionaries of None, bool, int, float, str, lists, dictionaries and tensors.
"""

import contextlib
import functools
import inspect
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .devices import AtHome, OneDevice
from .errors import UnfinishedError, described, unfinished
from .importing import NOTHING, Importer
from .layers import layers_of
from .names import OF_CALLS, TABLES, Maker, changer, namespace, of_build, of_call, sizes_in, used
from .origins import Origins
from .running import run
from .settings import usual_settings
from .signatures import DEFINES_ROTATIONS, helpers, parameters
from .surroundings import NoGpu
from .tensors import first_tensor, held, listed, plain
from .weighted import course_weights
from .weights import give_shapes, plain_weights

Request = dict[str, Any]
Reply = dict[str, Any]


class Driver:
    """Answers requests about one class or factory. What the learner's code raises becomes {"error": {...}}."""

    def __init__(self) -> None:
        self._make: Callable[..., Any] | None = None
        self._name = "make"
        self._module: types.ModuleType | None = None
        self._importer: Importer | None = None
        self._surroundings: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        self._file: str | None = None
        self._own: dict[str, Any] = {}  # the learner's names
        self._blocks: dict[int, nn.Module] = {}
        self._names: dict[int, dict[str, Any]] = {}  # by block, what its lines may use

    def handle(self, request: Request) -> Reply:
        """The reply to one request; its "op" names one of the methods below."""
        try:
            with warnings.catch_warnings(), self._surroundings, usual_settings({}):
                warnings.simplefilter("ignore")
                return getattr(self, "op_" + request["op"])(request)
        except BaseException as error:  # sys.exit() and KeyboardInterrupt of the learner are its errors too
            return {"error": described(error)}

    def op_load(self, request: Request) -> Reply:
        """Import root/file as module (or module from root, without a file), and find name in it.

        "beside", "distributions", "texts" and "left_out" are importing.Importer's.
        Gives use()'s reply, or {"missing": names that the module has} without such a name.
        """
        own = (request.get(one, NOTHING) for one in ("beside", "distributions", "texts"))
        self._importer = Importer(request["root"], *own)
        self._file = request["file"]
        self._surroundings = NoGpu(self._importer.notes)
        with self._surroundings, usual_settings(self._importer.notes):
            module = self._importer.module(request["module"], request["file"], request.get("left_out", NOTHING))
        found: Any = module
        for part in request["name"].split("."):
            if not hasattr(found, part):
                return {"missing": [name for name, value in vars(module).items() if _is_own(value, module)][:50]}
            found = getattr(found, part)
        if not callable(found):
            return {"missing": [name for name, value in vars(module).items() if _is_own(value, module)][:50]}
        self._module = module
        return self.use(found, request["name"])

    def op_look_beside(self, request: Request) -> Reply:
        """Import the files beside it that define rotations; the reply is use()'s."""
        if self._importer is not None:
            self._importer.neighbours(DEFINES_ROTATIONS, self._file)
        assert self._make is not None, "a class is loaded first"
        return self.use(self._make, self._name)

    def use(self, make: Callable[..., Any], name: str | None = None) -> Reply:
        """Judge this class or factory.

        Gives {"name": what lines call it, "constructor": its parameters, "is_class", "helpers": what else of the
        learner's may serve (see signatures.helpers), "notes": what stands in for something at import, "numbers": the
        file's own sizes (see names.sizes_in)}.
        """
        if name is None:
            own = getattr(make, "__name__", "")
            name = own if own.isidentifier() else "make"
            self._module = sys.modules.get(str(getattr(make, "__module__", "")))
        self._make, self._name = make, name
        modules = [] if self._importer is None or self._file is None else self._importer.modules()
        self._own = namespace(modules, self._module)
        if modules and self._module is not None:  # not in the process of somebody's own tests
            self._own["changed"] = changer(modules, self._module)
        constructor = parameters(make)
        return {
            "name": name,
            "constructor": constructor,
            "is_class": inspect.isclass(make),
            "helpers": helpers(self._own, make, constructor or ()),
            "notes": self._notes,
            "numbers": sizes_in(self._module) if modules and self._module is not None else {},
        }

    @property
    def _notes(self) -> dict[str, str]:
        return {} if self._importer is None else dict(self._importer.notes)

    def op_build(self, request: Request) -> Reply:
        """Evaluate "line" with "values" (see names.py), or call the class with "positional" and "arguments".

        "to" names the dtype that the result is brought to; "filled" puts NaN into memory that the constructor leaves
        uninitialised. {"dtype": name} and {"device": name} stand for torch's own.
        Gives {"block": number, "parameters", "tensors" (buffers, and plain attributes), "forward", "layers": what it
        stacks (see layers.py), "read": what was asked of a configuration of ours, "notes": as use()'s, so far}; with
        "origins" also {"origins": see origins.py}.
        """
        assert self._make is not None, "a class is loaded first"
        torch.manual_seed(request.get("seed", 0))
        filled = _filled if request.get("filled") else contextlib.nullcontext
        if "line" not in request:
            arguments = {name: _spelled_out(value) for name, value in request.get("arguments", {}).items()}
            with filled():
                block = self._make(*request.get("positional", ()), **arguments)
            return self.add(block, to=request.get("to"))
        names = of_build({name: _spelled_out(value) for name, value in request["values"].items()})
        wanted = used(request["line"])
        positions = torch.arange(names["max_seq_len"])
        names |= of_call(wanted & {*TABLES}, names, positions[:, None].double(), {"positions": positions})
        if "weights" in wanted:
            names["weights"] = course_weights(names)
        config = Maker(names)
        names = self._own | names | {"config": config}
        if "." not in self._name:
            names[self._name] = self._make
        there = OneDevice if request["values"].get("device") == {"device": "meta"} else contextlib.nullcontext
        origins = Origins() if request.get("origins") else None
        with filled(), there(), origins or contextlib.nullcontext():
            block = eval(request["line"].strip(), names)
        if isinstance(block, nn.Module):
            give_shapes(block, names["d_model"])
        reply = self.add(block, to=request.get("to"))
        if origins is not None:
            reply["origins"] = origins.of(block)
        self._names[reply["block"]] = names
        reply["read"] = config.asked()
        return reply

    def add(self, block: Any, *, to: str | None = None) -> Reply:
        """Take a block that is built already; the reply is op_build's."""
        if not isinstance(block, nn.Module):
            raise TypeError(f"a block must be a torch.nn.Module, but the constructor gave {type(block).__name__}")
        if (owner := unfinished(block)) is not None:
            raise UnfinishedError(owner)
        plain_weights(block)
        if to is not None:
            dtype = getattr(torch, to)  # complex tables stay as they are: Module.to would drop their imaginary part
            block._apply(lambda one: one.to(dtype) if one.is_floating_point() else one)
        number = len(self._blocks)
        self._blocks[number] = block
        return {
            "block": number,
            "parameters": listed(block.named_parameters(remove_duplicate=False)),
            "tensors": listed(held(block)),
            "forward": parameters(block.forward),
            "layers": layers_of(block),
            "read": {},
            "notes": self._notes,
        }

    def op_elsewhere(self, request: Request) -> Reply:
        """Gives {"files"}: for names in "build" and "call" that are of another file than the one under test, which."""
        names, own = self._names.get(request["block"], {}), {} if self._module is None else vars(self._module)
        modules = [] if self._importer is None else self._importer.modules()
        found = {}
        for name in sorted((used(request["build"]) | (used(request["call"]) - OF_CALLS)) - own.keys()):
            files = [_file(module) for module in modules if name in vars(module)]
            if files and name in self._own and names.get(name) is self._own[name]:
                found[name] = files[-1] or ""
        return {"files": found}

    def op_values(self, request: Request) -> Reply:
        """Gives {"values"}: what the parameters hold now, by name; {"owners", "classes"}: where their classes stand;
        {"modules"}: the names of the classes of all modules, and of those that they inherit from.
        """
        block = self._blocks[request["block"]]
        named = dict(block.named_parameters(remove_duplicate=False))
        classes = {name: type(block.get_submodule(name.rpartition(".")[0])) for name in named}
        return {
            "values": {name: plain(parameter) for name, parameter in named.items()},
            "owners": {name: _file_of(owner) for name, owner in classes.items()},
            "classes": {name: owner.__name__ for name, owner in classes.items()},
            "modules": sorted(
                {one.__name__ for module in block.modules() for one in type(module).__mro__}
                | {str(getattr(module, "original_name", "")) for module in block.modules()}  # of TorchScript
            ),
        }

    def op_run(self, request: Request) -> Reply:
        """Evaluate "line" with "inputs" and "values", or without a line call the block with "inputs" and "keywords".

        The other entries of the request, and those of the reply, are running.run's.
        """
        block = self._blocks[request["block"]]
        return run(request, block, functools.partial(self._called, request, block))

    def _called(self, request: Request, block: nn.Module, inputs: list[Any], keywords: dict[str, Any]) -> Any:
        if "line" not in request:
            return block(*inputs, **keywords)
        line, names = request["line"].strip(), self._names.get(request["block"], {})
        names = names | of_call(used(line), names, inputs[0], request.get("values") or {}) | {"block": block}
        if inputs[0].device.type == "cpu":
            return eval(line, names)
        with torch.device(inputs[0].device):  # what the line makes is made there as well, but not what the block makes
            return eval(line, names | {"block": AtHome(block)})

    def op_run_on_meta(self, request: Request) -> Reply:
        """Move the block to the meta device, call it with an input there, and forget it. Gives {"shape", "device"}.

        With "built_there" it is not moved. No copy is moved: a lambda that the constructor made would still hold the
        modules of the first.
        """
        block = self._blocks.pop(request["block"])
        block = block if request.get("built_there") else block.to("meta")
        inputs = [value.to("meta") for value in request["inputs"]]
        with torch.no_grad(), OneDevice():
            y = first_tensor(self._called(request, block, inputs, {}), inputs[0].shape)
        return {"shape": list(y.shape), "device": str(y.device)}

    def op_forget(self, request: Request) -> Reply:
        """Drop every block."""
        self._blocks.clear()
        return {}


def _file(module: types.ModuleType) -> str:
    return os.path.basename(getattr(module, "__file__", None) or module.__name__)


def _file_of(owner: type) -> str:
    try:
        return inspect.getfile(owner)
    except (TypeError, OSError):
        return ""


def _is_own(value: Any, module: types.ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _spelled_out(value: Any) -> Any:
    match value:
        case {"dtype": str(name)}:
            return getattr(torch, name)
        case {"device": str(name)}:
            return torch.device(name)
    return value


@contextlib.contextmanager
def _filled() -> Iterator[None]:
    """torch.empty gives NaN meanwhile."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
