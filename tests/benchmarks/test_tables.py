import json

import pytest
import tables


def run(method, seed, recall, *, output="features", **versions):
    scores = {"recall_at": {"1": recall, "2": 0.9}, "map_at_r": 0.3, "r_precision": 0.4, "nmi": 0.5, "ami": 0.45}
    return {"method": method, "seed": seed, "scores": {output: scores}, "versions": versions}


GROUPS = {
    "frozen": [run("frozen", 0, 0.5), run("frozen", 1, 0.5)],
    "udml": [run("udml", 0, 0.6), run("udml", 1, 0.7)],
    "supervised": [run("supervised", 0, 0.8)],
}


def test_row_has_mean_and_standard_deviation():
    _, udml, supervised = tables.summarize(GROUPS)
    assert udml.seeds == (0, 1)
    assert udml.mean["R@1"] == pytest.approx(0.65)
    assert udml.spread["R@1"] == pytest.approx(0.005**0.5)  # of 0.6 and 0.7, divided by n - 1
    assert udml.spread["R@2"] == 0
    assert supervised.spread == {}


def test_markdown_shows_percent_and_no_deviation_for_one_seed():
    lines = tables.markdown(tables.summarize(GROUPS), "method").splitlines()
    assert lines[0] == "| method | output | seeds | R@1 | R@2 | MAP@R | R-precision | NMI | AMI |"
    assert lines[3].startswith("| udml | features | 2 | 65.0 ± 7.1 | 90.0 ± 0.0 | 30.0 ± 0.0 |")
    assert lines[4].startswith("| supervised | features | 1 | 80.0 | 90.0 | 30.0 |")


def test_embeddings_of_the_untrained_model_are_named_so():
    rows = tables.summarize({"frozen": [run("frozen", 0, 0.5, output="embeddings")]})
    assert "| frozen | embeddings, untrained |" in tables.markdown(rows, "method")


def test_files_name_the_command_and_each_set_of_versions_once(tmp_path):
    groups = {"frozen": [run("frozen", seed, 0.5, torch=torch) for seed, torch in enumerate(("2.6", "2.6", "2.7"))]}
    rows = tables.write(
        tmp_path, groups, heading="method", command="python x.py", settings={"steps": 2}, notes=["A note."]
    )
    text, content = (tmp_path / "table.md").read_text(), json.loads((tmp_path / "table.json").read_text())
    for part in ("```\npython x.py\n```", "Settings: steps 2.", "Versions: torch 2.6.", "torch 2.7.", "A note."):
        assert text.count(part) == 1
    assert content["versions"] == [{"torch": "2.6"}, {"torch": "2.7"}]
    assert content["settings"] == {"steps": 2}
    assert content["rows"][0]["mean"] == rows[0].mean
