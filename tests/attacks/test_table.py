"""The table of the page `what-is-tested.md`."""

from pathlib import Path

from attacks import ATTACKS, HEADER, with_counts

PAGE = (Path(__file__).parents[2] / "docs" / "what-is-tested.md").read_text()


def test_the_page_has_a_row_of_every_attack():
    rows = PAGE.partition(HEADER)[2].splitlines()
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {name}", done] for name, done in ATTACKS.items()]


def test_new_counts_replace_those_of_the_same_attack_only():
    first = with_counts(f"Text.\n\n{HEADER}", {"disk": (7, 0), "kills": (5, 2)})
    second = with_counts(first, {"disk": (9, 1)})
    text, *rows = second.split(HEADER)
    assert text == "Text.\n\n"
    found = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[0].splitlines()]
    assert [(row[0], row[2], row[3]) for row in found] == [("kills", "5", "3"), ("disk", "9", "8")]
