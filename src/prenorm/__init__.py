"""One Transformer block you can read, trust and run fast, and everything that grows out of it.

The public names are loaded on first use, so that `prenorm --help` does not wait for torch.
"""

import importlib
import pkgutil
import re
from typing import Any

__version__ = "0.1.0"

# The module that each public name lives in. The names are listed once, as the imports of the type stub.
_STUB = (pkgutil.get_data(__name__, "__init__.pyi") or b"").decode()
_HOME = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.MULTILINE)}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prenorm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
