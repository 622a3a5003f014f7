"""The claims and the code of the README and the docs hold."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "my-model").iterdir()}


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch says it of itself
@pytest.mark.parametrize(
    "page", [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python" in path.read_text()]
)
def test_the_python_of_the_docs_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), namespace)


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_index_of_the_docs_has_every_page_and_no_link_of_a_page_is_dead() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert sorted(listed) == [page.name for page in pages if page.name != "README.md"]
    for page in pages:
        links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        local = [link.partition("#")[0] for link in links if "://" not in link]
        assert [link for link in local if link and not (page.parent / link).exists()] == [], page.name


def test_the_figures_of_the_page_about_flops_are_those_that_its_command_prints() -> None:
    command = runpy.run_path(str(ROOT / "benchmarks" / "flops.py"))
    page = (ROOT / "docs" / "where-do-the-flops-go.md").read_text()
    assert "\n".join(command["tables"]()) in _joined(page)


def test_tables_of_results_are_those_that_the_benchmarks_wrote() -> None:
    command = runpy.run_path(str(ROOT / "benchmarks" / "pages.py"))
    pages = command["pages"]()
    assert ROOT / "README.md" in pages
    for page in pages:
        text = page.read_text()
        assert text == command["written"](text), f"{page.name}: make bench-pages writes it anew"


def _joined(page: str) -> str:
    """The tables of a page, in order."""
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    return "\n".join(tables)
