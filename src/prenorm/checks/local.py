"""A block of one's own process, for tests that trust it: no sandbox, the same requests and replies."""

from typing import Any

from torch import nn

from .child.driver import Driver


class LocalSubject:
    """Runs the driver here. For code that is not trusted there is sandbox/."""

    def __init__(self) -> None:
        self.driver = Driver()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The driver's reply."""
        return self.driver.handle(request)

    def add(self, block: nn.Module) -> dict[str, Any]:
        """Take a block that is built already; the reply is that of a build request."""
        return self.driver.add(block)
