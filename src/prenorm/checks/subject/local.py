"""A block of one's own process, for tests that trust it: no sandbox, the same requests, replies of the same form."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .child.driver import Driver
from .replies import checked


class LocalSubject:
    """Runs the driver here. For code that is not trusted there is sandbox.py.

    make: the class or factory, where it is at hand already; a request to load one then gives this one.
    """

    def __init__(self, make: Callable[..., nn.Module] | None = None) -> None:
        self.driver = Driver()
        self.make = make

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The driver's reply."""
        if request["op"] == "load" and self.make is not None:
            return checked("load", self.driver.use(self.make))
        return checked(request["op"], self.driver.handle(request))
