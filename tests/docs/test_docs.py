"""The pages' programs run as printed, and the errors they quote are the ones the library raises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
RAISED_BY = {"refusal", "type_error", "warn", "FloatingPointError", "add_note"}


def blocks_of(page):
    """Return the page's programs, each below as many empty lines as put it on the page's line."""
    return ["\n" * page.count("\n", 0, block.start(1)) + block[1] for block in BLOCK.finditer(page)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if BLOCK.search(page)])
def test_the_programs_of_a_page_run_in_order(name, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    namespace = {"__name__": "__main__"}
    for block in blocks_of(PAGES[name]):
        exec(compile(block, str(DOCS / name), "exec"), namespace)  # noqa: S102 (our own files)


def test_there_are_pages_with_programs():
    assert sum(len(blocks_of(page)) for page in PAGES.values()) > 20


def text_of(node):
    """Return a string's text with a NUL where a value goes, or None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return None


def messages_of(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", None))
            text = text_of(node.args[0]) if name in RAISED_BY else None
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "message":
            text = text_of(node.value)
        else:
            continue
        if text is not None and text != "\0, got \0. \0.":
            yield text


def beginning(message):
    """Return the part of a message before what was found."""
    return re.split(r"; |: ", message)[0]


MESSAGES = sorted(
    {beginning(text) for path in (ROOT / "udmlss").rglob("*.py") for text in messages_of(path.read_text())}
)
QUOTED = [quote.removesuffix("...") for quote in re.findall(r"^`` ?(.+?) ?``$", PAGES["faq.md"], flags=re.MULTILINE)]


def says(message, quote):
    pattern = "(.+)".join(map(re.escape, message.split("\0")))
    return re.fullmatch(pattern, quote) is not None


@pytest.mark.parametrize("quote", QUOTED)
def test_a_message_that_the_questions_quote_is_in_the_sources(quote):
    assert [message for message in MESSAGES if says(message, quote)]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.replace("\0", "*"))
def test_a_message_of_the_sources_is_among_the_questions(message):
    assert [quote for quote in QUOTED if says(message, quote)]


def test_the_sources_have_messages():
    assert len(MESSAGES) > 40
    assert not [message for message in MESSAGES if not message.strip("\0 ")]
