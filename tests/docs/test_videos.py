"""The example about videos runs on animations, and with another decoder."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import videos


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_first_frame_of_each_period_is_saved(tmp_path, capsys, suffix):
    frames = [Image.new("RGB", (40, 40), (20 * number, 0, 0)) for number in range(10)]
    path = tmp_path / f"walk{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[300] * 10, lossless=True)
    videos.main([str(path), "--every", "1", "--out", str(tmp_path / "frames")])
    saved = sorted((tmp_path / "frames" / "walk").iterdir())
    assert [file.name for file in saved] == [f"walk_{seconds:09.2f}s.jpg" for seconds in (0, 1.2, 2.1)]
    reds = [np.asarray(Image.open(file))[..., 0].mean() for file in saved]
    assert reds == pytest.approx([0, 80, 140], abs=5)
    printed = capsys.readouterr().out
    assert printed.startswith(f"3 frames of 1 videos are in {tmp_path / 'frames'}.\n3 images checked, 3 can be read.")
    assert "constant" in printed


def test_another_decoder_can_be_used(tmp_path):
    def decode(path):
        return ((seconds, Image.new("RGB", (8, 8))) for seconds in (0.5, 7.9, 8.0, 8.1))

    saved = videos.save_frames(tmp_path / "a.mov", tmp_path, 4, decode)
    assert [path.name for path in saved] == ["a_000000.50s.jpg", "a_000007.90s.jpg", "a_000008.00s.jpg"]


def test_a_missing_decoder_and_a_wrong_period_are_errors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        videos.save_frames(tmp_path / "a.mp4", tmp_path, 1)
    with pytest.raises(SystemExit):
        videos.main(["a.mp4", "--every", "0"])


def test_videos_are_decoded_by_pyav(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(20):
            image = np.full((64, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    saved = videos.save_frames(tmp_path / "a.mp4", tmp_path, 1)
    assert [path.name for path in saved] == ["a_000000.00s.jpg", "a_000001.00s.jpg"]
