"""Settings of the whole process, such as torch's default dtype: no block changes its numbers by them."""

import torch

from prenorm.checks.subject.child.settings import SETTINGS, usual_settings

OTHERS = {
    "default dtype": torch.float64,
    "default device": torch.device("meta"),
    "gradients": False,
    "deterministic algorithms": (True, True),
    "threads": torch.get_num_threads() + 1,
    "anomaly mode": True,
    "float32 matmul precision": "medium",
}


def test_every_setting_is_usual_meanwhile_and_afterwards_as_it_was():
    assert {one.name for one in SETTINGS} == OTHERS.keys()
    with usual_settings({}):
        for setting in SETTINGS:
            setting.write(OTHERS[setting.name])
        with usual_settings(inner := {}):
            assert [one.read() for one in SETTINGS] == [one.usual for one in SETTINGS]
        assert {one.name: one.read() for one in SETTINGS} == OTHERS
    assert [one.read() for one in SETTINGS] == [one.usual for one in SETTINGS]
    assert inner == {}


def test_what_was_changed_is_said():
    with usual_settings(notes := {}):
        torch.set_default_dtype(torch.bfloat16)
    assert notes == {"default dtype": "bfloat16 is set for the whole process; float32 is used"}
