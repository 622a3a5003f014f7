"""Imports a learner's file as its users do, where packages of theirs are not installed and no terminal is there.

What stands in for something is told in the notes. Whatever stands in for a missing package raises when it is used by a
block, so that no number ever comes from it.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

INSTALL = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "flash_attn": "flash-attn",
    "pytorch_lightning": "pytorch-lightning",
    "rotary_embedding_torch": "rotary-embedding-torch",
    "tensorboardX": "tensorboardX",
    "dotenv": "python-dotenv",
    "hydra": "hydra-core",
}
"""Where the name to install is another than the one to import."""
_NAMES = (
    "wandb tensorboard tensorboardX tqdm matplotlib seaborn pandas hydra omegaconf lightning pytorch_lightning "
    "datasets tiktoken tokenizers sentencepiece mlflow neptune comet_ml clearml aim rich loguru click typer fire absl "
    "psutil regex pytest submitit modal plotly scipy sklearn nltk accelerate deepspeed fairscale apex xformers "
    "flash_attn transformers einops einx jaxtyping beartype typeguard typing_extensions torchtyping ml_collections "
    "torchinfo torchvision torchmetrics torchao torchtune triton bitsandbytes peft safetensors huggingface_hub "
    "evaluate gin simple_parsing pydantic attr attrs yaml dotenv PIL cv2 requests tyro colorlog coloredlogs structlog "
    "ray rotary_embedding_torch x_transformers litgpt timm dacite humanize pynvml GPUtil fvcore thop torchsummary "
    "jsonargparse"
)
KNOWN = frozenset(_NAMES.split())
"""Packages that exist: a file that imports one of them and never uses it in a block can be judged without."""
ROUNDS = 12  # of imports, each of which may find one more package missing
OUTSIDE = (OSError, ImportError, SystemExit)
"""What a file raises at import because of where it runs: data, a network, an installation or arguments are missing."""


class Importer:
    """Imports from root. beside: top-level names of the learner's that lie elsewhere, with their files or folders.

    distributions: name -> version of what the learner's own project calls itself.
    """

    def __init__(self, root: str, beside: Mapping[str, str], distributions: Mapping[str, str]) -> None:
        self.root, self.beside = root, dict(beside)
        self.notes: dict[str, str] = {}
        self._stubs = _Stubs()
        if root and root not in sys.path:
            sys.path.insert(0, root)
        sys.meta_path += [_Beside(self.beside), self._stubs, _Distributions(distributions)]

    def module(self, name: str, file: str | None, text: str | None = None) -> types.ModuleType:
        """The module: from its file where there is one, as part of the packages that its name says.

        text: what is run in place of the file's own text.
        """
        _leave_out_cuda(self.notes)
        with _no_arguments(file):
            for _ in range(ROUNDS):
                try:
                    module = self._once(name, file, text)
                    break
                except ModuleNotFoundError as error:
                    missing = (error.name or "").partition(".")[0]
                    if missing not in KNOWN or missing in self._stubs.names or self._is_own(missing):
                        raise
                    self._stubs.names.add(missing)
                    self._forget()
            else:
                raise ImportError("too many packages are missing")
        for missing in sorted(self._stubs.names):
            self.notes[missing] = f"not installed here: pip install {INSTALL.get(missing, missing)}"
        self._stubs.seal()
        return module

    def modules(self) -> list[types.ModuleType]:
        """The learner's own modules that were loaded."""
        return [module for module in list(sys.modules.values()) if self._is_mine(module)]

    def neighbours(self, pattern: re.Pattern[str], file: str | None) -> None:
        """Import the files beside this one that define what fits the pattern; those that cannot be are left out."""
        if file is None or "." not in (name := next((n for n, m in sys.modules.items() if _file(m) == file), "")):
            package, folder = "", Path(file or self.root).parent
        else:
            package, folder = name.rpartition(".")[0] + ".", Path(file).parent
        for path in sorted(folder.glob("*.py"))[:60]:
            with contextlib.suppress(BaseException):
                if str(path) != file and path.stem.isidentifier() and pattern.search(path.read_text(errors="replace")):
                    _from_file(package + path.stem, str(path), None)

    def _once(self, name: str, file: str | None, text: str | None) -> types.ModuleType:
        if file is None:
            return importlib.import_module(name)
        parent, before = name.rpartition(".")[0], sys.modules.get(name)
        if parent:
            try:
                importlib.import_module(parent)
            except (Exception, SystemExit) as error:
                if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in KNOWN:
                    raise
                self._forget()
                self._stand_in(parent, Path(file).parent)
                if (Path(file).parent / "__init__.py").is_file():  # the file's own error will be raised again
                    self.notes[f"{parent}/__init__.py"] = f"left out, because it raises {type(error).__name__}: {error}"
        loaded = sys.modules.get(name)
        if loaded is not before and loaded is not None and _file(loaded) == file and text is None:
            return loaded
        return _from_file(name, file, text)

    def _stand_in(self, package: str, folder: Path) -> None:
        """Empty packages, so that relative imports work without what the packages' own files do."""
        while package:
            module = types.ModuleType(package)
            module.__path__ = [str(folder)]
            module.__package__ = package
            module.__spec__ = importlib.machinery.ModuleSpec(package, None, is_package=True)
            sys.modules[package] = module
            package, folder = package.rpartition(".")[0], folder.parent

    def _is_own(self, name: str) -> bool:
        """Whether the learner's own file is missing, and not a package."""
        return any(Path(self.root, name + suffix).exists() for suffix in ("", ".py")) or name in self.beside

    def _is_mine(self, module: Any) -> bool:
        file = _file(module)
        mine = [self.root, *self.beside.values()]
        return file is not None and any(
            file == one or file.startswith(one.rstrip(os.sep) + os.sep) for one in mine if one
        )

    def _forget(self) -> None:
        for name, module in list(sys.modules.items()):
            if self._is_mine(module) and name != "__main__":
                del sys.modules[name]


def _file(module: Any) -> str | None:
    try:  # sys.modules holds what it was given: no module at all, at times
        file = vars(module).get("__file__")
    except TypeError:
        return None
    return file if isinstance(file, str) else None


def _from_file(name: str, file: str, text: str | None) -> types.ModuleType:
    if "." not in name and (name in sys.modules or name in sys.stdlib_module_names):
        name = f"{name}_under_test"  # a file that is called random.py must not become everybody's random
    loader = importlib.machinery.SourceFileLoader(name, file)  # whatever the file's name ends in
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        if text is None:
            loader.exec_module(module)
        else:
            exec(compile(text, file, "exec"), vars(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    parent, _, last = name.rpartition(".")
    if parent in sys.modules:  # as import does: package.module is found through its package, too
        setattr(sys.modules[parent], last, module)
    return module


def _leave_out_cuda(notes: dict[str, str]) -> None:
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
def _no_arguments(file: str | None) -> Iterator[None]:
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


class _Beside(importlib.abc.MetaPathFinder):
    """Finds the learner's packages and files that lie beside what is under test."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        place = self._places.get(name)
        if place is None or path is not None:
            return None
        if place.endswith(".py"):
            return importlib.util.spec_from_file_location(name, place)
        init = os.path.join(place, "__init__.py")
        if os.path.isfile(init):
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[place])
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [place]
        return spec


_ANY = importlib.metadata.DistributionFinder.Context()


class _Distributions(importlib.metadata.DistributionFinder):
    """What a project says of itself, where it is not installed: its version."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        self._versions = {_normal(name): (name, version) for name, version in versions.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """No module comes from here."""

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context = _ANY
    ) -> Iterator[importlib.metadata.Distribution]:
        """The one of that name."""
        if context.name is not None and (found := self._versions.get(_normal(context.name))) is not None:
            yield _Distribution(*found)


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, name: str, version: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename in ("METADATA", "PKG-INFO") else None

    def locate_file(self, path: Any) -> Any:
        return Path(os.devnull)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are missing, while files are imported."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._sealed: list[bool] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name, self._sealed)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""

    def seal(self) -> None:
        """From now on using one raises."""
        self._sealed.append(True)


def is_stub(value: Any) -> bool:
    """Whether it stands in for something of a missing package."""
    return isinstance(value, _Stub)


class _StubModule(types.ModuleType):
    def __init__(self, name: str, sealed: list[bool]) -> None:
        super().__init__(name)
        self.__dict__["_sealed"] = sealed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._sealed:
            raise _missing(f"{self.__name__}.{name}")
        return _stub(f"{self.__name__}.{name}", self._sealed)


def _missing(path: str) -> ModuleNotFoundError:
    top = path.partition(".")[0]
    return ModuleNotFoundError(f"{path} is used, and {top} is not installed here: pip install {INSTALL.get(top, top)}")


class _Stub(type):
    """A name of a missing package: it can be imported, inherited from, subscribed and used as a decorator.

    _path: what it stands for. _sealed: a list that is no longer empty once using it must raise.
    """

    _path: str
    _sealed: list[bool]

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if cls._sealed:
            raise _missing(f"{cls._path}.{name}")
        return _stub(f"{cls._path}.{name}", cls._sealed)

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if cls._sealed or "_path" not in vars(cls):
            raise _missing(cls._path)
        if len(args) == 1 and not keywords and callable(args[0]):
            return args[0]  # as a decorator
        return _stub(cls._path, cls._sealed)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __bool__(cls) -> bool:
        if cls._sealed:
            raise _missing(cls._path)
        return True

    def __enter__(cls) -> Any:
        return cls

    def __exit__(cls, *_: Any) -> None:
        return None


def _stub(path: str, sealed: list[bool]) -> _Stub:
    return _Stub(path.rpartition(".")[2], (), {"_path": path, "_sealed": sealed})
