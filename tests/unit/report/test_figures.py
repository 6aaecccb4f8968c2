"""The matplotlib figures of the report."""

import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from udmlss.neighbors import nearest
from udmlss.report import contact_sheet, plot_history, plot_map, plot_neighbors, write_report


@pytest.fixture(autouse=True)
def _without_a_window():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def colors_of(figure):
    """Return the color in the middle of each image of a figure."""
    shown = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    return [tuple(int(value) for value in picture[len(picture) // 2, len(picture) // 2]) for picture in shown]


def test_the_history_has_one_plot_per_measurement_with_its_values(run):
    figure = plot_history(run.history)
    assert [axes.get_title() for axes in figure.axes][:3] == ["Loss", "Label-free score", "Agreement"]
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [report.loss for report in run.history])
    with pytest.raises(ValueError, match="`history` must hold at least one round"):
        plot_history([])


def test_a_contact_sheet_shows_the_rows_in_their_order():
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 3, 4, 4).to(torch.uint8)
    figure = contact_sheet(images, [4, 0, 4], titles=["a", "b", "c"], columns=2)
    assert colors_of(figure) == [(4, 4, 4), (0, 0, 0), (4, 4, 4)]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"`rows` must lie in 0..5, got 6"):
        contact_sheet(images, [6])
    with pytest.raises(ValueError, match="`titles` must hold 2 titles, got 1"):
        contact_sheet(images, [1, 2], titles=["a"])


def test_a_map_shows_points_or_images(run):
    labels = run.pseudo_labels.labels
    points = plot_map(run.embeddings, labels=labels).axes[0].collections[0]
    assert len(points.get_offsets()) == len(labels)
    colors = {tuple(color) for color in points.get_facecolors()[labels == 0]}
    assert len(colors) == 1
    assert tuple(points.get_facecolors()[-1]) not in colors
    assert len(plot_map(run.embeddings, run.paths).axes[0].get_images()) > 10
    with pytest.raises(ValueError, match="`images` must hold 55 items, one per embedding, got 2"):
        plot_map(run.embeddings, run.paths[:2])


def test_changed_neighbors_are_marked_by_a_word_and_a_frame(run):
    figure = plot_neighbors(run.paths, run.embeddings, [5], start_embeddings=run.start_embeddings, n_neighbors=4)
    before, after = (nearest(rows, 4)[1][5].tolist() for rows in (run.start_embeddings, run.embeddings))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "query"
    assert titles[1:5] == ["before" if row in after else "gone" for row in before]
    assert titles[5:] == ["after" if row in before else "new" for row in after]
    assert [axes.spines["top"].get_visible() for axes in figure.axes[1:]] == [
        title in {"gone", "new"} for title in titles[1:]
    ]
    assert len(plot_neighbors(run.paths, run.embeddings, [5, 6], n_neighbors=3).axes) == 8
    with pytest.raises(ValueError, match="`n_neighbors=1` must be below the number of images, got 1"):
        plot_neighbors(run.paths[:1], run.embeddings[:1], [0], n_neighbors=1)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_an_error_with_the_line_to_type(package, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'A report requires {package}, .* pip install "udmlss\[report\]"'):
        write_report(tmp_path / "report.html", run.paths, run.embeddings, run.pseudo_labels)
    assert not list(tmp_path.iterdir())
    if package == "matplotlib":
        with pytest.raises(ImportError, match=r'pip install "udmlss\[report\]"'):
            plot_history(run.history)
