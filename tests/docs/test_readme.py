import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_a_program():
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.strip().splitlines()[0])
def test_a_program_of_the_readme_runs_as_printed(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102 (our own file)
    before, after = (float(share) for share in re.findall(r"R@1 ([0-9.]+)%", capsys.readouterr().out))
    assert after > before + 2


def test_the_readme_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


def test_every_file_the_readme_names_is_there():
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)", README) + re.findall(
        r"python ((?:examples|benchmarks)/\S+\.py)", README
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
