"""Messages of the command."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_MINUTE, _HOUR = 60, 3600


def messenger(*, progress: bool) -> Callable[[str], None]:
    """Return a function that prints a line to the standard error stream, or one that does nothing."""
    return _print_line if progress else lambda _line: None


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 (a command prints)


def count(number: int, noun: str) -> str:
    """Return a number and a noun, as in "1 image" and "2,665 images"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a duration in words, as in "12 minutes"."""
    if seconds < 1.5 * _MINUTE:
        return count(max(1, round(seconds)), "second")
    if seconds < 1.5 * _HOUR:
        return count(round(seconds / _MINUTE), "minute")
    return f"{seconds / _HOUR:.1f} hours"


def short_path(path: Path) -> str:
    """Return a path relative to the working folder if it is inside of it."""
    folder = Path.cwd()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Return rows of two columns, the second of which is aligned."""
    width = max((len(first) for first, _ in rows), default=0)
    return "\n".join(f"{first:{width}}  {second}" for first, second in rows)


def message_of(error: BaseException) -> str:
    """Return the message of an error in one line, without the traceback that a process that loads images adds."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].partition("\n")[0]
    return " ".join(text.split())
