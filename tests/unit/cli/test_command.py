"""The arguments, the messages and the exit codes of the command."""

import inspect
import os
import signal
import subprocess
import sys
import warnings

import pytest

import udmlss
from udmlss import cli
from udmlss._files import replace_file
from udmlss.cli import command

COMMANDS = command._COMMANDS
NAMES = [name for name in cli.__all__ if name.islower() and name != "main"]


@pytest.fixture
def replace(monkeypatch):
    """Return a function that lets a function run in place of a subcommand, with the signature of the subcommand."""

    def replace_command(name, function):
        original = getattr(cli, name)
        show, example = COMMANDS[original]
        function.__name__, function.__doc__ = name, original.__doc__
        function.__signature__ = inspect.signature(original)
        monkeypatch.setattr(command, "_COMMANDS", {function: (show, example)})

    return replace_command


@pytest.mark.parametrize("name", NAMES)
def test_each_function_is_a_subcommand_whose_help_documents_every_parameter(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for parameter in inspect.signature(getattr(cli, name)).parameters.values():
        option = f"--{parameter.name.replace('_', '-')}"
        assert (option if parameter.kind is parameter.KEYWORD_ONLY else parameter.name.upper().rstrip("S")) in printed
    assert f"udmlss {name} " in printed.split("example:")[1]
    assert "`" not in printed


def test_options_become_keywords_of_the_same_name_and_defaults_are_those_of_the_function(replace, capsys):
    calls = []

    def received(*arguments, **keywords):
        calls.append((arguments, keywords))
        return ["one", "two"]

    replace("search", received)
    assert cli.main(["search", "run", "a.jpg", "b.jpg", "--k", "3"]) == 0
    assert calls == [(("run", "a.jpg", "b.jpg"), {"k": 3})]
    assert capsys.readouterr().out == "one\n\ntwo\n"
    replace("train", received)
    options = ["--epochs", "0.5", "--skip-unreadable", "--precision", "bfloat16", "--no-progress"]
    cli.main(["train", "photos", "--out", "run", *options])
    keywords = {"out": "run", "epochs": 0.5, "skip_unreadable": True, "precision": "bfloat16", "progress": False}
    assert calls[1] == (("photos",), keywords)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "photos"], "--out"),
        (["train", "photos", "--out", "run", "--epochs", "many"], "--epochs"),
        (["train", "photos", "--out", "run", "--epoch", "2"], "--epoch"),
        (["search", "run"], "IMAGE"),
        (["retrieve"], "retrieve"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_on_stderr_and_exit_code_2(arguments, part, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    output = capsys.readouterr()
    assert (end.value.code, output.out) == (2, "")
    assert output.err.startswith("udmlss: error: ")
    assert output.err.count("\n") == 1
    assert part in output.err
    assert "--help" in output.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("`k` must be at least 1, got 0. Raise it."), 2, "error: --k must be at least 1, got 0. Raise it."),
        (TypeError("`run` must be a path"), 2, "error: RUN must be a path"),
        (ValueError("`lr` must be\nfinite"), 2, "error: `lr` must be finite"),
        (OSError("The disk is full"), 1, "error: The disk is full"),
        (RuntimeError("out of memory"), 1, "error: RuntimeError: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("Run the same command again"), 130, "interrupted: Run the same command again"),
    ],
)
def test_an_error_is_one_line_that_names_options_and_has_its_exit_code(error, code, text, replace, capsys):
    def fail(*_arguments, **_keywords):
        raise error

    replace("search", fail)
    assert cli.main(["search", "run", "a.jpg"]) == code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"udmlss: {text}\n")
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            cli.main(["search", "run", "a.jpg", "--debug"])


def test_notes_of_an_error_follow_its_message(replace, capsys):
    def fail(*_arguments, **_keywords):
        error = OSError("No space left")
        error.add_note("while writing embeddings to x.npy")
        raise error

    replace("search", fail)
    assert cli.main(["search", "run", "a.jpg"]) == 1
    assert capsys.readouterr().err == "udmlss: error: No space left (while writing embeddings to x.npy)\n"


def test_sigterm_deletes_temporary_files_and_ends_with_its_exit_code(replace, tmp_path):
    def receive_signal(*_arguments, **_keywords):
        with replace_file(tmp_path / "output") as part:
            part.touch()
            signal.raise_signal(signal.SIGTERM)

    replace("search", receive_signal)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        cli.main(["search", "run", "a.jpg"])
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_and_warnings_are_as_before_afterwards(replace, capsys):
    def warn(*_arguments, **_keywords):
        warnings.warn("3 images cannot\nbe read", stacklevel=1)
        return "done"

    replace("train", warn)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["train", "photos", "--out", "run"]) == 0
    assert capsys.readouterr() == ("done\n", "udmlss: warning: 3 images cannot be read\n")
    assert warnings.showwarning is before


def test_a_closed_pipe_ends_the_command_without_a_message(replace, monkeypatch, capsys):
    replace("train", lambda *_arguments, **_keywords: "result")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["train", "photos", "--out", "run"]) == 1
        pipe.write("more")
    assert capsys.readouterr().err == ""


def test_the_module_is_the_command():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    python = [sys.executable, "-m", "udmlss", "--version"]
    found = subprocess.run(python, capture_output=True, text=True, env=environment, check=True)  # noqa: S603
    assert found.stdout == f"{udmlss.__version__}\n"
