"""Whether the whole block moves to another device: tried with the meta device, which every machine has."""

from torch import Tensor

from ..subject.raised import Description, LearnerError
from .case import Case, in_short, raised

# torch's messages if tensors are on two devices.
MIXED = ("same device", "expected device", "on device", "is on meta", "different from other tensors", "device type")

MADE_THERE = {
    "as parameter": "make it there, nn.Parameter(torch.ones(d_model, device=device)): a parameter's .to(device) is a "
    "plain tensor",
    "legacy constructor": "torch.empty(d_out, d_in, device=device): torch.Tensor(...) makes tensors on the CPU alone",
    "to numpy": "compute with torch, or bring it to the CPU first: NumPy has arrays of the CPU alone",
} | dict.fromkeys(MIXED, "make all tensors of the constructor with device=device, before they meet")
"""What a constructor raises with every device but the CPU, and the fix: it is no matter of the meta device."""


def devices(case: Case) -> None:
    """Move a block to another device and call it there; build one there."""
    if "retains_state" in case.report.findings:
        case.report.skip("devices", "what it keeps between calls would stay on the old device")
        return
    x = case.x(2, case.tokens).float()
    reply = case.build().run_on_meta(x)
    problem = _problem(reply, "after moving to another device")
    counts = bool(problem)
    if not problem:  # what a call keeps must move too, but most blocks move before the first call
        built = case.build()
        built.run(None, x)
        reply = built.run_on_meta(x)
        problem = _problem(reply, "after a call, and moving to another device,")
    problems, error = [problem] if problem else [], reply.get("error")
    if problem and error is not None:
        case.report.errors["wrong_device_buffer"] = error
    if case.learner.takes("device") and (staying := _built_there(case, x)):
        problems.append(staying)
        counts = True
    if problems:
        case.report.found("wrong_device_buffer", "; ".join(problems), counts=counts)
    if error is not None and not problems:
        case.report.skip("devices", f"on the meta device it raises {error['message'][:120]}")
    else:
        case.report.check("devices", not problems, "moved to the meta device, and built there")


def _built_there(case: Case, x: Tensor) -> str:
    """What is wrong with a block that the constructor builds on another device; empty if nothing is."""
    try:
        built = case.build(device={"device": "meta"})
    except LearnerError as failed:
        mend = next((mend for words, mend in MADE_THERE.items() if words in failed.error["message"]), None)
        if mend is not None:
            case.report.errors["constructor_error"] = failed.error
            evidence = f"with device= of another device it raises {raised(failed)}"
            case.report.found("constructor_error", evidence, mend=mend)
        else:
            case.report.skip("device argument", raised(failed))
        return ""
    weights, tensors = (
        [one["name"] for one in held if one["device"] != "meta"] for held in (built.parameters, built.tensors)
    )
    if weights:
        return f"built with device=, it has these weights on another device: {', '.join(weights[:4])}"
    reply: Description = built.run_on_meta(x, built_there=True) if tensors else {"device": "meta"}
    problem = _problem(reply, "built there with device=")
    if problem and "error" in reply:
        case.report.errors.setdefault("wrong_device_buffer", reply["error"])
    return f"{problem}; on another device: {', '.join(tensors[:4])}" if problem else ""


def _problem(reply: Description, when: str) -> str:
    """What is wrong with a call on another device; empty if nothing is, or the meta device cannot show it."""
    error = reply.get("error")
    if error is not None and any(words in error["message"] for words in MIXED):
        return f"{when} it raises {in_short(error['message'])[:240]}"
    if error is None and reply["device"] != "meta":
        return f"{when} its output is on {reply['device']}"
    return ""
