"""What the learner's code raised, as the judge sees it."""

import re
from typing import Any

Description = dict[str, Any]


class LearnerError(Exception):
    """The learner's code raised. stage: import, constructor or forward; error: as the driver describes it."""

    def __init__(self, stage: str, error: Description) -> None:
        super().__init__(f"{error['type']}: {error['message']}")
        self.stage = stage
        self.error = error


class MissingError(Exception):
    """The file has no such class. names: those that it defines."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names


def refuses(error: LearnerError) -> bool:
    """Whether the statement that raises is meant to refuse what it is given; torch raises where an attribute lacks."""
    frames = error.error.get("frames") or ()
    if not frames or error.error["type"] == "AttributeError":
        return False
    return re.search(r"(^|: *)(raise|assert)\b", str(frames[-1]["code"]).strip()) is not None


def refused(stage: str, message: str) -> LearnerError:
    return LearnerError(stage, {"type": "refused", "message": message, "frames": []})


def or_raise(stage: str, reply: Description) -> Description:
    if "error" in reply:
        raise LearnerError(stage, reply["error"])
    return reply
