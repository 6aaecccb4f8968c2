"""The command `udmlss`: its arguments, its output and its exit codes."""

import argparse
import inspect
import os
import re
import signal
import sys
import textwrap
import threading
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import udmlss
from udmlss import keep_freed_memory
from udmlss.cli.images import check, dataset
from udmlss.cli.messages import message_of, short_path
from udmlss.cli.outputs import embed, export, report
from udmlss.cli.queries import duplicates, search
from udmlss.cli.training import train

_BAD_ARGUMENTS, _FAILURE, _INTERRUPT, _TERMINATED = 2, 1, 130, 128 + signal.SIGTERM
_ALIASES = {  # of parts of the library
    "name": "backbone",
    "n_clusters": "clusters",
    "num_workers": "workers",
    "folder": "other",
}


def _show_groups(groups: Sequence[Sequence[Path]]) -> str:
    return "\n\n".join("\n".join(map(short_path, group)) for group in groups) or "There are no near-duplicates."


def _show_lines(results: Sequence[object]) -> str:
    return "\n\n".join(map(str, results))


_Function = Callable[..., Any]
_COMMANDS: dict[_Function, tuple[Callable[[Any], str], str]] = {  # a function that formats the result, and an example
    train: (str, "udmlss train photos --out run"),
    search: (_show_lines, "udmlss search run photos/1.jpg --k 5"),
    duplicates: (_show_groups, "udmlss duplicates run --threshold 0.98"),
    embed: (short_path, "udmlss embed run new-photos --out new-photos.npy"),
    export: (short_path, "udmlss export run model.onnx"),
    report: (short_path, "udmlss report run"),
    check: (str, "udmlss check photos"),
    dataset: (str, "udmlss dataset cub200 data --unpack"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments of the command. None takes them from `sys.argv`.

    Returns:
        The exit code: 0, or 2 for wrong values of arguments, 1 for other errors or problems that were found, and 130
        after Ctrl-C.

    Raises:
        SystemExit: The arguments cannot be parsed (2), or ask for the help or the version (0), or the process received
            SIGTERM (143).
    """
    options = vars(_build_parser().parse_args(arguments))
    function, debug = options.pop("function"), options.pop("debug")
    positional, options = _split(function, options)
    keep_freed_memory()
    with warnings.catch_warnings(), _exit_on_sigterm():
        warnings.showwarning = _print_warning
        try:
            result = function(*positional, **options)
            _print_result(_COMMANDS[function][0](result))
        except BrokenPipeError:  # the reader of a pipe, such as `head`, needs no more lines
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends
            return _FAILURE
        except KeyboardInterrupt as interrupt:
            return _fail(_INTERRUPT, "interrupted", str(interrupt))
        except Exception as error:
            if debug:
                raise
            is_argument = isinstance(error, ValueError | TypeError)
            return _fail(_BAD_ARGUMENTS if is_argument else _FAILURE, "error", _describe(error, function))
    return _FAILURE if getattr(result, "problems", ()) else 0


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit during the block, so that temporary files are deleted."""
    if threading.current_thread() is not threading.main_thread():  # other threads must not set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:  # a handler that is not of Python is None
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _exit(_signal: int, _frame: object) -> typing.NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not interrupt the deletion of files
    sys.exit(_TERMINATED)


def _print_result(text: str) -> None:
    """Print a text, with escapes for characters that the output cannot encode, as in some names of files."""
    print(_encodable(text, sys.stdout.encoding), flush=True)  # noqa: T201 (a command prints)


def _fail(code: int, kind: str, text: str) -> int:
    _print_message(kind, text)
    return code


def _print_message(kind: str, text: str) -> None:
    line = f"udmlss: {kind}{': ' * bool(text)}{text}"
    print(_encodable(line, sys.stderr.encoding), file=sys.stderr)  # noqa: T201 (as above)


def _encodable(text: str, encoding: str | None) -> str:
    return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


def _describe(error: Exception, function: _Function) -> str:
    """Return the message of an error in one line, with the options of the command in place of parameters."""
    if isinstance(error, UnicodeEncodeError):
        return f"A name must be valid Unicode, got {error.object!a}. Rename the file."
    notes = "; ".join(getattr(error, "__notes__", ()))
    text = (message_of(error) or type(error).__name__) + f" ({notes})" * bool(notes)
    if not isinstance(error, ValueError | TypeError | OSError | ImportError):
        text = f"{type(error).__name__}: {text}"
    return _with_options(text, function)


def _with_options(text: str, function: _Function) -> str:
    """Replace the parameters of a function in a text by the options of the command, as `k` by --k."""
    names = _ALIASES | {name: name for name in inspect.signature(function).parameters}
    options = {name: _option(function, alias) for name, alias in names.items()}
    return re.sub(r"`(\w+)`", lambda found: options.get(found[1]) or found[0], text)


def _option(function: _Function, name: str) -> str | None:
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None:
        return None
    return f"--{name.replace('_', '-')}" if parameter.kind is parameter.KEYWORD_ONLY else _metavar(parameter)


def _metavar(parameter: inspect.Parameter) -> str:
    return "IMAGE" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name.upper()


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    _print_message("warning", " ".join(str(message).split()))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(_BAD_ARGUMENTS, f"udmlss: error: {message}. See {self.prog} --help.\n")


def _build_parser() -> argparse.ArgumentParser:
    """Build the parser from the signatures and the docstrings of the functions, which are the subcommands."""
    parser = _Parser("udmlss", description=udmlss.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=udmlss.__version__)
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for function, (_, example) in _COMMANDS.items():
        text, documented = _read_docstring(function)
        subparser = subcommands.add_parser(
            function.__name__,
            help=text[0],
            description=_fill(text, function),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for parameter in inspect.signature(function).parameters.values():
            _add_argument(subparser, parameter, _with_options(documented[parameter.name], function))
        subparser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        subparser.set_defaults(function=function)
    return parser


def _add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    """Add an argument for a parameter; an omitted option leaves the default of the function."""
    text = text.replace("%", "%%")
    if parameter.kind is not parameter.KEYWORD_ONLY:
        nargs = "+" if parameter.kind is parameter.VAR_POSITIONAL else None
        kind = _conversion(parameter.annotation)
        parser.add_argument(parameter.name, metavar=_metavar(parameter), help=text, nargs=nargs, **kind)
        return
    name, default = f"--{parameter.name.replace('_', '-')}", parameter.default
    settings: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS, **_conversion(parameter.annotation)}
    if default is parameter.empty:
        settings["required"] = True
    elif default is not None and not isinstance(default, bool):
        settings["help"] += f" (default: {default})"
    parser.add_argument(name, **settings)


def _conversion(annotation: Any) -> dict[str, Any]:  # noqa: ANN401 (any annotation)
    """Return the settings of `add_argument` for an annotation: a switch, a number, one of several words, or text."""
    is_union = typing.get_origin(annotation) in {typing.Union, types.UnionType}
    kinds = [kind for kind in (typing.get_args(annotation) if is_union else [annotation]) if kind is not type(None)]
    if kinds[0] is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kinds[0] in {int, float}:
        return {"type": kinds[0], "metavar": "N"}
    words = typing.get_args(kinds[0])
    return {"choices": words} if words and all(isinstance(word, str) for word in words) else {}


def _read_docstring(function: _Function) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs of a docstring before its sections, and the text of each argument."""
    text, _, sections = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    arguments = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", sections.partition("\n\n")[0], flags=re.MULTILINE)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return paragraphs, {name: " ".join(text.split()) for name, text in arguments}


def _fill(paragraphs: Sequence[str], function: _Function) -> str:
    width = get_terminal_size().columns - 2  # as argparse does
    return "\n\n".join(textwrap.fill(_with_options(paragraph, function), width) for paragraph in paragraphs)


def _split(function: _Function, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Split the arguments of a command into the positional ones of a function and its keywords."""
    positional: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += options.pop(parameter.name)
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(options.pop(parameter.name))
    return positional, options
