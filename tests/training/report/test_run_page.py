"""The page about runs: what it says, that it needs nothing else, and how a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prenorm.training.report.record import read_run
from prenorm.training.report.run_page import _in_legend, run_page

from .runs import write_run

CHROMIUM = shutil.which("chromium")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def plain(text):
    return html.unescape(re.sub(r"<[^>]+>", " ", text))


def test_it_has_what_the_run_has(tmp_path):
    text = run_page([read_run(write_run(tmp_path / "run", steps=60))])
    assert text.count("<picture>") == 5  # loss, learning rate, gradient, tokens a second, MFU
    said = plain(text)
    for part in ("4 of 60", "1,234", "3.25", "1.5", "all held-out text", "the loss is nan", "spike-step-00000004.json"):
        assert part in said, part
    for part in ("Read 2 documents.", "0.0 MB", "step 2", "at the end", "muon_lr"):
        assert part in said, part


def test_a_run_that_goes_on_says_so(tmp_path):
    said = plain(run_page([read_run(write_run(tmp_path / "run", finished=False))]))
    assert "not finished" in said
    assert "the part that is looked at, step 4" in said


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    for name in ("metrics.jsonl", "samples.jsonl", "data/data.json"):
        (folder / name).unlink()
    text = run_page([read_run(folder)])
    assert "No step is finished yet." in text
    assert "<picture>" not in text


def test_settings_that_differ_come_first(tmp_path):
    runs = [read_run(write_run(tmp_path / name, muon_lr=rate)) for name, rate in (("a", 0.01), ("b", 0.02))]
    text = run_page(runs)
    differing = plain(text[text.index("Those that differ.") : text.index("All, as in config.toml")])
    assert "muon_lr 0.01 0.02" in " ".join(differing.split())
    assert "seed" not in differing


def test_what_a_model_writes_is_shown_and_never_run(tmp_path):
    text = run_page([read_run(write_run(tmp_path / "run", sample="</pre><script>alert(1)</script>\x07\u00a0"))])
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\ufffd\u00a0" in text


def test_what_no_run_has_takes_no_row(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in ("a", "b")]
    assert "averaged weights" not in plain(run_page(runs))
    records = (tmp_path / "b" / "metrics.jsonl").read_text()
    (tmp_path / "b" / "metrics.jsonl").write_text(
        records.replace('"eval_loss": 3.25', '"eval_loss": 3.25, "ema_eval_bits_per_byte": 1.4')
    )
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    assert "the same, averaged weights 1.4" in " ".join(plain(run_page(runs)).split())


def test_any_name_of_a_folder_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("_hidden", r"a $\frac$ b", "$x$ _y_")
    runs = [read_run(write_run(Path(name))) for name in names]
    assert run_page(runs).count("<picture>") == 5
    assert [_in_legend(run) for run in runs] == ["./_hidden", r"a \$\frac\$ b", r"\$x\$ _y_"]


def test_the_model_of_a_run_that_stopped_early_has_the_weights_of_its_best_step(tmp_path):
    for name, weights_of_step, expected in (("a", 2, "weights of step 2"), ("b", 0, "weights of step 4")):
        folder = write_run(tmp_path / name)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"weights_of_step": weights_of_step}))
        assert expected in " ".join(plain(run_page([read_run(folder)])).split())


def test_it_refers_to_no_other_file(tmp_path):
    text = run_page([read_run(write_run(tmp_path / "run"))])
    assert not re.search(r"""(?:src|srcset|href)=["'](?!data:|#)""", text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path):
    page = tmp_path / "report.html"
    fits = "document.documentElement.scrollWidth <= innerWidth && document.images[0].width > 0"
    probe = f"<script>document.title = {fits}</script>"
    text = run_page([read_run(write_run(tmp_path / name)) for name in ("a", "b")])
    page.write_text(re.sub(r"<meta http-equiv=.*?>", "", text).replace("</body>", f"{probe}</body>"))
    shown = subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            f"--user-data-dir={tmp_path / 'user'}",
            "--window-size=500,800",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>true</title>" in shown.stdout
