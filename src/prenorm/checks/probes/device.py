"""Whether the whole block moves to another device: tried with the meta device, which every machine has."""

from ..subject.learner import LearnerError
from .case import Case, in_short, raised

# torch's messages if tensors are on two devices.
MIXED = ("same device", "expected device", "on device", "is on meta", "different from other tensors", "device type")


def devices(case: Case) -> None:
    """Move a block to another device and call it there; build one there."""
    problems = []
    if "retains_state" in case.report.findings:
        case.report.skip("devices", "what it keeps between calls would stay on the old device")
        return
    built, x = case.build(), case.x(2, 7).float()
    built.run(None, x)  # what it keeps from a call must move too
    reply = built.run_on_meta(x)
    error = reply.get("error")
    if error is not None and any(words in error["message"] for words in MIXED):
        problems.append(f"after moving to another device it raises {in_short(error['message'])[:240]}")
        case.report.errors["wrong_device_buffer"] = error
    elif error is None and reply["device"] != "meta":
        problems.append(f"after moving to another device its output is on {reply['device']}")
    if case.learner.takes("device"):
        try:
            built = case.build(device={"device": "meta"})
            staying = [one["name"] for one in built.parameters if one["device"] != "meta"]
            if staying:
                problems.append(f"with device=, these weights are on another device: {', '.join(staying[:4])}")
        except LearnerError as failed:
            case.report.skip("device argument", raised(failed))
    if problems:
        case.report.found("wrong_device_buffer", "; ".join(problems))
    if error is not None and not problems:
        case.report.skip("devices", f"on the meta device it raises {error['message'][:120]}")
    else:
        case.report.check("devices", not problems, "moved to the meta device, and built there")
