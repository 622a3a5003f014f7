"""What is judged, as the judge sees it: something that answers requests with raw numbers (see child/driver.py)."""

from typing import Any, Protocol, runtime_checkable

from ...errors import PrenormError


class EndedError(PrenormError):
    """The process that ran the learner's code is no more, or makes no sense.

    reason: "timeout" (the deadline of the whole judgement), "died" (exit, signal, out of memory), "protocol"
    (its reply is not one), "output" (too much of it).
    waited: the seconds that it had for the request that it did not answer. during: that request, such as "load".
    """

    def __init__(self, reason: str, detail: str, waited: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.waited = waited
        self.during = ""


@runtime_checkable
class Subject(Protocol):
    """Answers one request after the other; raises EndedError when it cannot any more."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply of child/driver.py to request."""
        ...
