"""Experiments measured in this process, which spares the tests the start of another."""

import html
import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import jaxtyping
import pytest

from prenorm import page
from prenorm.lab.folder import open_folder
from prenorm.lab.report import write_report


def measured(experiment, folder, text=None):
    """The record of an experiment, with its files in the folder: small pictures, and shapes as users have them."""
    with open_folder(folder, experiment.name, text=text) as cells, _quickly():
        for plan in (experiment.plan, experiment.timed):
            while plan and (missing := [one for one in plan(cells).cells if cells.get(one) is None]):
                for cell in missing:
                    cells.add(cell, cell.measure())
        return write_report(experiment.report(cells), folder)


@contextmanager
def _quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "DOTS_PER_INCH", 30)
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)


def browser_says(page, folder, width=400):
    """What headless Chromium finds on a page, without network: the facts that a script adds up once it is loaded.

    The script is put into a copy, whose policy lets it run and nothing else.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        return None
    text = page.read_text()
    policy = re.search(r'content="(default-src[^"]*)"', text)[1]
    if "script-src" not in policy:
        text = text.replace(policy, f"{policy}; script-src 'unsafe-inline'")
    look = """<script>addEventListener("load", () => { const facts = {
      width: innerWidth, scroll: document.documentElement.scrollWidth,
      images: [...document.images].map((one) => one.naturalWidth), errors: window.errors,
      plots: document.querySelectorAll(".js-plotly-plot .main-svg").length,
      cells: [...document.querySelectorAll(".heatmaplayer image")].length,
      maps: [...document.querySelectorAll(".js-plotly-plot")].map((plot) => plot.data.map(({z, text}) => ({z, text})))};
      document.title = "facts" + JSON.stringify(facts) + "end"; });</script>"""
    watch = '<script>window.errors = []; addEventListener("error", (one) => errors.push(one.message), true);</script>'
    copy = folder / "copy.html"
    head, _, rest = text.partition("<title>")  # Plotly's own text has such words, too
    copy.write_text(f"{head}{watch}<title>{look.join(rest.rsplit('</body>', 1))}")
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    options = [*quiet.split(), "--disable-sync", "--headless", "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120
    )
    return json.loads(html.unescape(re.search(r"<title>facts(.*?)end</title>", done.stdout)[1]))
