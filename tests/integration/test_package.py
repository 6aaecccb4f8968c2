"""The wheel and the source archive."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import udmlss

pytestmark = pytest.mark.xdist_group("package")  # which is then built once
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-W", "error", "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_library_its_types_and_its_license_only(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "udmlss").rglob("*.py")}
    inside = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    templates = {f"udmlss/report/templates/report.{ending}" for ending in ("html", "css")}
    assert inside == sources | templates | {"udmlss/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.name.startswith(f"udmlss-{udmlss.__version__}-py3-none-any")


def test_the_source_archive_holds_the_tests_and_no_generated_files(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        names = source.getnames()
    for needed in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "conftest.py",
        "tests/integration/test_fit.py",
        "docs/conf.py",
    ):
        assert any(name.endswith(needed) for name in names), needed
    assert not [name for name in names if "__pycache__" in name or "_build" in name or ".venv" in name]


def test_the_files_of_the_wheel_can_be_imported(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)  # noqa: S202 (our own archive)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import udmlss; from importlib import metadata;"
        "print(udmlss.__file__, metadata.version('udmlss'))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == [str(tmp_path / "udmlss" / "__init__.py"), udmlss.__version__]
