"""Numbers, durations and tables in words."""

import pytest

from udmlss.cli import messages


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "1 second"), (89, "89 seconds"), (91, "2 minutes"), (5300, "88 minutes"), (5500, "1.5 hours")],
)
def test_a_duration_is_rounded_to_a_unit_that_suits_it(seconds, expected):
    assert messages.duration(seconds) == expected


def test_nouns_have_their_plural():
    assert [messages.count(n, "process") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
    assert messages.count(2665, "image") == "2,665 images"


def test_the_second_column_is_aligned():
    assert messages.columns([("a", "b"), ("ccc", "d")]) == "a    b\nccc  d"
    assert messages.columns([]) == ""


def test_paths_are_short_below_the_working_folder_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert messages.short_path(tmp_path / "a" / "b.jpg") == "a/b.jpg"
    assert messages.short_path(tmp_path.parent / "b.jpg") == str(tmp_path.parent / "b.jpg")


def test_lines_are_printed_with_progress_only(capsys):
    messages.messenger(progress=False)("a")
    messages.messenger(progress=True)("b")
    assert capsys.readouterr() == ("", "b\n")


def test_the_message_of_an_error_has_no_traceback_of_a_worker():
    text = "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    error = OSError(f"{text}OSError: a.png must be complete, got 3 bytes.\nwhile loading item 3 of `images`")
    assert messages.message_of(error) == "a.png must be complete, got 3 bytes."
    assert messages.message_of(ValueError("one\n  two")) == "one two"
