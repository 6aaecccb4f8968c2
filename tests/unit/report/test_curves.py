"""Curves of a history, as data and as SVG."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

from udmlss.report.curves import as_svg, curves_of


def test_only_measurements_with_a_value_are_drawn(run):
    titles = [curves.title for curves in curves_of(run.history)]
    assert titles == [
        "Loss",
        "Label-free score",
        "Agreement",
        "Number of clusters",
        "Size of clusters",
        "Images without a cluster",
    ]
    bare = replace(run.history[0], label_free=None, agreement=None, n_unassigned=0)
    assert [curves.title for curves in curves_of([bare])] == ["Loss", "Number of clusters", "Size of clusters"]
    assert curves_of([]) == []


def test_the_terms_of_the_loss_are_drawn_if_there_are_several(run):
    rotated = [replace(report, rotation_loss=1.3) for report in run.history]
    assert list(curves_of(rotated)[0].lines) == ["total", "metric", "rotation"]
    assert list(curves_of(run.history)[0].lines) == ["total"]


def test_the_alternative_text_states_the_values(run):
    assert (
        curves_of(run.history)[2].alternative == "Agreement. Agreement: first 0.6, last 0.8, lowest 0.6, highest 0.8."
    )


def test_the_score_before_training_is_a_line_of_its_own(run):
    start = replace(run.history[0].label_free, shared_neighbors=0.25)
    found = curves_of(run.history, start)[1]
    assert found.lines["before training"] == [start.score] * len(run.history)
    assert found.alternative.endswith(f"Before training: {start.score:.4g}.")


def test_the_svg_is_well_formed_takes_its_colors_from_the_page_and_has_identifiers_of_its_own(run):
    first, second = (as_svg(curves_of(run.history)[4], name) for name in ("a", "b"))
    assert ET.fromstring(first).get("viewBox")  # noqa: S314 (our own text)
    assert not re.search(r"#(?!a-)\w", first)  # neither colors nor foreign identifiers
    assert {"currentColor", "var(--line-1)", "var(--line-2)"} <= set(
        re.findall(r"currentColor|var\(--line-\d\)", first)
    )
    identifiers = [re.findall(r' id="([^"]+)"', svg) for svg in (first, second)]
    assert not set(identifiers[0]) & set(identifiers[1])
    assert len(set(identifiers[0])) == len(identifiers[0])
    assert ">largest<" in first
    assert "font-family" not in first
