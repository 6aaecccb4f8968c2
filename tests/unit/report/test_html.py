"""The page: what it holds, what it needs, and that it is written as a whole or not at all."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jaxtyping
import pytest
import torch

from udmlss import PseudoLabels
from udmlss.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "link", "br"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* in the report cannot be read:UserWarning"),
    pytest.mark.xdist_group("report"),  # whose page is then written once
]
TITLE = "Birds & <script>alert(1)</script>"


class Page(HTMLParser):
    """The start tags and the text of a page; the parser fails where tags are not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(path.read_text())
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    settings = {"history": run.history, "start_embeddings": run.start_embeddings, "duplicates": [[0, 1, 2], [8, 9]]}
    return write_report(
        path, run.paths, run.embeddings, run.pseudo_labels, title=TITLE, summary="It helped.\n\nA bit.", **settings
    )


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


def test_the_page_needs_nothing_but_itself(page):
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in {"src", "href"}]
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in links if link.startswith("#")} <= set(identifiers)
    assert "@import" not in page.text
    assert "url(http" not in page.text


def test_the_page_states_the_run_and_what_cannot_be_read(page):
    assert "It helped. A bit." in page.text
    assert "Images 55 Clusters 13 Images per cluster 4 to 4 Without a cluster 3 (5%)" in page.text
    assert (
        "Near-duplicates 5 in 2 groups Rounds 4 Training steps 40 Label-free score, first and last round 0.600 → 0.615"
        in page.text
    )
    assert "54 <b>.jpg" in page.text  # the damaged file, escaped in the source
    assert "1 of them cannot be read" in page.text
    assert any("cannot be read" in picture["alt"] for picture in page.named("img"))


def test_the_page_states_the_score_before_training_if_it_is_given(run, tmp_path):
    start = replace(run.history[0].label_free, shared_neighbors=0.25)
    settings = {"history": run.history, "start_scores": start, "n_queries": 0}
    written = write_report(tmp_path / "report.html", run.paths, run.embeddings, run.pseudo_labels, **settings)
    assert f"Label-free score, before training and after the last round {start.score:.3f} → 0.615" in Page(written).text


def test_every_section_starts_with_a_sentence_and_changed_neighbors_have_a_word(page, written):
    assert [attributes["id"] for attributes in page.named("section")] == [
        "summary",
        "training",
        "clusters",
        "unassigned",
        "neighbors",
        "duplicates",
        "map",
    ]
    assert len(re.findall(r'</h2>\s*<p class="lead">[A-Z]', written.read_text())) == 7
    n_new = sum(int(count) for count in re.findall(r"(\d) of 6 are new", page.text))
    assert n_new > 0
    for word in ("new", "gone"):  # each query loses as many neighbors as it gains
        assert written.read_text().count(f">{word}</span>") == n_new
        assert sum(picture["alt"].endswith(f", {word}") for picture in page.named("img")) == n_new


def test_very_many_near_duplicates_come_with_a_warning(page, run, tmp_path):
    warning = "this similarity is too low for these images"
    equal = write_report(tmp_path / "report.html", run.paths, torch.ones(55, 4), run.pseudo_labels, n_queries=1)
    assert warning in Page(equal).text
    assert warning not in page.text


def test_the_warning_of_many_near_duplicates_compares_them_with_the_images_that_were_searched(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr("udmlss.report.html._SEARCHED", 10)
    found = write_report(tmp_path / "report.html", run.paths, torch.ones(55, 4), run.pseudo_labels, n_queries=1)
    assert "this similarity is too low for these images" in Page(found).text


def test_images_that_cannot_be_read_are_named_in_a_warning(run, tmp_path):
    with pytest.warns(
        UserWarning, match=r"^1 of the \d+ images in the report cannot be read .*, such as .*/54 <b>\.jpg"
    ):
        write_report(tmp_path / "report.html", run.paths, run.embeddings, run.pseudo_labels)


def test_near_duplicates_of_a_large_set_are_searched_in_a_sample_of_its_rows(run, tmp_path, monkeypatch):
    monkeypatch.setattr("udmlss.report.html._SEARCHED", 30)
    start = torch.eye(30)[torch.arange(55) % 30]  # rows 0 to 24 are equal to rows 30 to 54
    path = write_report(tmp_path / "report.html", run.paths, run.embeddings, run.pseudo_labels, start_embeddings=start)
    section = path.read_text().partition('<section id="duplicates"')[2].partition("</section>")[0]
    assert "A sample of 30 images was searched." in section
    rows = [int(row) for row in re.findall(r'alt="[^"]*/(\d+) ', section)]
    assert rows
    assert all(second == first + 30 for first, second in zip(rows[::2], rows[1::2], strict=True))


def test_titles_and_file_names_are_escaped(page):
    assert len(page.named("script")) == 1
    assert not page.named("b")
    assert TITLE in page.text


def test_the_same_arguments_give_the_same_page(run, tmp_path):
    texts = [
        write_report(tmp_path / name, run.paths, run.embeddings, run.pseudo_labels, seed=3).read_text()
        for name in ("a.html", "b.html")
    ]
    assert texts[0] == texts[1]


def test_the_smallest_run_has_a_page(tmp_path):
    labels = PseudoLabels.from_labels([0])
    page = Page(write_report(tmp_path / "report.html", torch.rand(1, 1, 2, 2), torch.ones(1, 3), labels, n_queries=0))
    assert "All clusters, the largest first Cluster 0 1 image, reliability 1.00" in page.text
    assert "No images are almost the same" in page.text


def test_a_write_that_fails_leaves_the_existing_file_and_nothing_else(run, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def disk_is_full(self, text, **_):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, run.paths, run.embeddings, run.pseudo_labels)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["a.jpg"]}, "`images` must hold 55 items, one per embedding, got 1"),
        ({"pseudo_labels": PseudoLabels.from_labels([0])}, "`pseudo_labels` must hold 55 items"),
        ({"pseudo_labels": [0] * 55}, "`pseudo_labels` must be PseudoLabels, got list"),
        ({"start_embeddings": torch.ones(2, 2)}, "`start_embeddings` must hold 55 items"),
        ({"start_embeddings": torch.full((55, 2), torch.nan)}, "`start_embeddings` must be finite"),
        ({"duplicates": [[0, 55]]}, r"`duplicates` must lie in 0..54, got 55"),
        ({"path": "."}, "`path` must be the path of a file, got the folder"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_is_written(change, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the shapes of the signature reject some before
    valid = {
        "path": tmp_path / "report.html",
        "images": run.paths,
        "embeddings": run.embeddings,
        "pseudo_labels": run.pseudo_labels,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        write_report(**valid | change)
    assert not list(tmp_path.iterdir())


MEASURE = """
<script>addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const lights = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const c = value / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
  const luminance = (color) => { const [r, g, b] = lights(color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const background = (element) => { for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor; if (!/, 0\\)$/.test(color)) return color; } };
  const contrast = (element) => {
    const [low, high] = [getComputedStyle(element).color, background(element)].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05); };
  const hasText = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const texts = all("body *").filter((each) => hasText(each) && !each.closest("script, svg"));
  const tiles = all(".tile"), scale = (tile) => getComputedStyle(tile.firstChild).transform;
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const stops = tiles.filter((tile) => tile.tabIndex === 0).length;
  tiles[0].focus();
  const enlarged = scale(tiles[0]) !== "none" && getComputedStyle(tiles[0].lastChild).display !== "none";
  press("ArrowDown");
  const moved = document.activeElement, result = {
    width: innerWidth, scrolled: document.documentElement.scrollWidth, stops, enlarged,
    small: scale(tiles[0]) === "none", moved: moved.dataset.y > tiles[0].dataset.y && scale(moved) !== "none",
    broken: all("img").filter((image) => !image.naturalWidth).length,
    headings: all("h1, h2, h3, h4").map((each) => Number(each.tagName[1])),
    landmarks: all("header, nav, main, footer").map((each) => each.tagName.toLowerCase()),
    nameless: all("img:not([alt]), section:not([aria-labelledby]), [role=img]:not([aria-label])").length,
    contrast: Math.min(...texts.map(contrast)), dark: matchMedia("(prefers-color-scheme: dark)").matches,
  };
  parent.document.body.textContent = JSON.stringify(result);
});</script>"""


@pytest.fixture(scope="module")
def measured(written, tmp_path_factory):
    """Return what a browser measures of the page in a window as wide as a phone, by color scheme."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    folder = tmp_path_factory.mktemp("browser")
    text = written.read_text().replace(' loading="lazy"', "").replace("</body>", MEASURE + "</body>")
    frame = folder / "frame.html"  # a window of Chromium cannot be as narrow as a phone
    frame.write_text(f'<iframe width="390" height="844" style="border: 0" srcdoc="{html.escape(text)}"></iframe>')

    def measure(scheme):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        settings = [f"--user-data-dir={folder / scheme}", f"--blink-settings=preferredColorScheme={scheme}"]
        done = subprocess.run([*command, *settings, frame.as_uri()], capture_output=True, text=True, check=True)  # noqa: S603
        return json.loads(re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)[1])

    return {scheme: measure(scheme) for scheme in ("0", "1")}


def test_the_page_can_be_read_in_a_browser_on_a_phone_with_a_keyboard_and_in_the_dark(measured):
    for found in measured.values():
        assert found["width"] == 390
        assert found["scrolled"] <= 390
        assert found["broken"] == found["nameless"] == 0
        assert found["landmarks"] == ["header", "nav", "main", "footer"]
        levels = found["headings"]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
        assert found["contrast"] >= 4.5
        assert found["stops"] == 1
        assert found["enlarged"]
        assert found["small"]
        assert found["moved"]
    assert {found["dark"] for found in measured.values()} == {True, False}
