"""Hand-ins that are copies of others."""

import zipfile

from prenorm.checks.report.alike import noted
from prenorm.checks.report.handed_in import find_submissions


def test_hand_ins_with_the_same_sources_say_whose(tmp_path):
    folder = tmp_path / "all"
    for name, text in {
        "ann/model.py": "class Block: ...",
        "bob/hw/net.py": "class Block: ...\n",
        "cy.py": "class Block: 1",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "ann" / "report.pdf").touch()
    with zipfile.ZipFile(folder / "dee.zip", "w") as archive:
        archive.writestr("model.py", "class Block: ...")
    (folder / "eve.pdf").touch()
    (folder / "finn.pdf").touch()
    found = noted(find_submissions(folder, "model.py:Block", unpacked=tmp_path / "unpacked"))
    assert {one.name: one.note for one in found} == {
        "ann": "the same sources as bob, dee.zip",
        "bob": "the same sources as ann, dee.zip",
        "cy.py": "",
        "dee.zip": "the same sources as ann, bob",
        "eve.pdf": "",
        "finn.pdf": "",
    }
