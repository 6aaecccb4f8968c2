"""The programs of the pages run as printed, and the errors that they quote are those of the library."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
SOURCES = "\n".join(path.read_text() for path in (ROOT / "udmlss").rglob("*.py"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
QUOTED = re.findall(r"^### `` ?(.+?) ?``$", PAGES["faq.md"], flags=re.MULTILINE)


def blocks_of(page):
    """Return the programs of a page, each after empty lines, so that tracebacks have the line numbers of the page."""
    return ["\n" * page.count("\n", 0, block.start(1)) + block[1] for block in BLOCK.finditer(page)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if BLOCK.search(page)])
def test_the_programs_of_a_page_run_in_order(name, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    namespace, blocks = {"__name__": "__main__"}, blocks_of(PAGES[name])
    assert len(blocks) == len(re.findall("```python(?! no-run)", PAGES[name]))  # the pattern finds every program
    for block in blocks:
        exec(compile(block, str(DOCS / name), "exec"), namespace)  # noqa: S102 (our own files)


def test_there_are_pages_with_programs():
    assert sum(len(blocks_of(page)) for page in PAGES.values()) > 20


@pytest.mark.parametrize("quote", QUOTED)
def test_an_error_that_the_questions_quote_exists(quote):
    assert all(part in SOURCES for part in quote.split("..."))
