import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udmlss.data import ImageFiles, check_images


def photo(seed, size=64):
    """Return smooth noise, whose thumbnail is as varied as that of a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Return the paths of four files without anything unusual."""
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        photo(number).save(path)
    return paths


def found(check):
    return {(finding.kind, finding.path.name) for finding in check.findings}


def test_usual_images_have_no_findings(photos):
    check = check_images(photos, progress=False)
    assert check.findings == ()
    assert check.readable == photos
    assert str(check) == "4 images checked, 4 can be read. Nothing unusual was found."


def test_each_kind_is_found_and_described_in_the_table(tmp_path, photos):
    def save(name, image, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    exif = Image.Exif()
    exif[0x0112] = 6
    sixteen = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    translucent = photo(11)
    translucent.putalpha(Image.linear_gradient("L").resize((64, 64)))
    unusual = {
        "constant": [save("constant.jpg", Image.new("RGB", (64, 64), "red"))],
        "tiny": [save("tiny.png", photo(10, 31))],
        "16-bit": [save("16.png", Image.fromarray(sixteen)), save("float.tif", Image.fromarray(np.float32(sixteen).T))],
        "transparent": [save("alpha.webp", translucent)],
        "rotated": [save("rotated.jpg", photo(12), exif=exif)],
        "CMYK": [save("cmyk.jpg", photo(13).convert("CMYK"))],
        "palette": [save("palette.gif", photo(14).quantize(64))],
        "broken": [tmp_path / "missing.jpg", tmp_path / "text.png", tmp_path / "truncated.jpg"],
    }
    (tmp_path / "text.png").write_text("no image")
    photo(15).save(tmp_path / "truncated.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "truncated.jpg").read_bytes()[:600])
    check = check_images([*photos, *(path for paths in unusual.values() for path in paths)], progress=False)
    assert found(check) == {(kind, path.name) for kind, paths in unusual.items() for path in paths}
    details = {finding.path.name: finding.detail for finding in check.findings}
    assert (details["tiny.png"], details["rotated.jpg"]) == ("31 x 31 pixels", "orientation 6")
    assert "No such file" in details["missing.jpg"]
    assert set(check.readable).isdisjoint(unusual["broken"])
    assert len(ImageFiles(check.readable)) == len(check.readable) == check.n_images - 3
    summary, blank, header, *rows = str(check).splitlines()
    assert (summary, blank) == ("15 images checked, 12 can be read.", "")
    assert header.split() == ["kind", "images", "what", "the", "library", "does", "with", "it", "first"]
    assert [row.split()[:2] for row in rows] == [
        *(["broken", "3"], ["tiny", "1"], ["constant", "1"], ["16-bit", "2"], ["transparent", "1"]),
        *(["rotated", "1"], ["CMYK", "1"], ["palette", "1"]),
    ]
    assert rows[0].endswith(f"{tmp_path.name}/text.png, {tmp_path.name}/truncated.jpg")


def test_duplicates_are_found_with_the_first_of_them(tmp_path, photos):
    identical, smaller, brighter = (tmp_path / f"{name}.jpg" for name in ("identical", "smaller", "other"))
    identical.write_bytes(photos[1].read_bytes())
    photo(2).resize((48, 48)).save(smaller, quality=60)
    photo(9).save(brighter)
    check = check_images([*photos, identical, smaller, brighter], progress=False)
    assert check.findings == (
        ("identical", identical, str(photos[1])),
        ("near-duplicate", smaller, str(photos[2])),
    )
    assert check.findings[0].kind == "identical"


def test_the_list_of_examples_is_short(tmp_path):
    missing = [tmp_path / f"{number}.png" for number in range(5)]
    check = check_images(missing, progress=False)
    assert Counter(finding.kind for finding in check.findings) == {"broken": 5}
    assert str(check).endswith(", ".join(f"{tmp_path.name}/{number}.png" for number in range(3)) + ", ...")


def test_findings_are_saved_completely_or_not_at_all(tmp_path, photos, monkeypatch):
    check = check_images([*photos, "no such\udce9.png"], progress=False)
    target = tmp_path / "findings.csv"
    check.save(target)
    with target.open(encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["broken"]
    assert Path(rows[0]["path"]) == Path("no such\udce9.png")
    before = target.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_images(photos, progress=False).save(target)
    assert target.read_bytes() == before
    assert not [*tmp_path.glob("*.part")]


def test_paths_are_required():
    with pytest.raises(ValueError, match=r"`paths` must contain at least one path, got none"):
        check_images([])
