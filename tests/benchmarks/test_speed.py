import json
import os
from dataclasses import replace
from functools import partial
from operator import mul
from pathlib import Path
from shutil import copytree

import jaxtyping
import pytest
import speed
import speed_clustering
import speed_command
import speed_communities
import speed_evaluation
import speed_fit
import speed_gpu
import speed_measurements
import speed_pictures
import speed_search
import speed_training
import torch
from speed import QUICK
from speed_baselines import faiss_k_means, loop_multi_similarity
from speed_clustering import exponents, objective
from speed_measurements import Cost, Row, cost_in_process, cost_of, measure_alternately
from speed_tables import markdown
from torch import nn
from torch.nn import functional

from udmlss.clustering.kmeans import k_means
from udmlss.neighbors import approximate
from udmlss.search import index

pytestmark = pytest.mark.xdist_group("speed")  # so that all lines are measured once
NAMES = [name for name in speed.LINES if not name.startswith("gpu") or not torch.cuda.is_available()]


def measure_once(_pairs, *measures):
    """Measure without the warm-up, which has a test of its own."""
    return [[measure()] for measure in measures]


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    """Measure in this process, because starting processes takes seconds; one test below starts one."""
    with pytest.MonkeyPatch.context() as patch:
        modules = (speed_clustering, speed_command, speed_communities, speed_evaluation, speed_search, speed_training)
        for module in modules:
            patch.setattr(module, "cost_in_process", cost_of)
        patch.setattr(speed_command, "keep_freed_memory", lambda: None)
        for module in (speed_clustering, speed_evaluation, speed_fit, speed_gpu, speed_training):
            patch.setattr(module, "measure_alternately", measure_once)
        for module in (approximate, index):
            patch.setattr(module, "_EXACT", module._EXACT)  # is restored after the lines have changed it
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a table with all lines."""
    folder = tmp_path_factory.mktemp("results") / "speed"
    speed.main(["--quick", "--only", ",".join(NAMES), "--out", str(folder)])
    return folder


def rows_of(out, line):
    return json.loads((out / "table.json").read_text())[line]["rows"]


def test_table_has_all_lines(out):
    lines = json.loads((out / "table.json").read_text())
    text = (out / "table.md").read_text()
    assert list(lines) == NAMES
    for found in lines.values():
        assert found["command"] == f"python benchmarks/speed.py --quick --only {','.join(NAMES)}"
        assert found["versions"]["torch"] == torch.__version__.split("+")[0]
        assert found["rows"]
        for row in found["rows"]:
            assert all(ratio > 0 for ratio in row["ratios"])
            assert row["measured"] in text


def test_measured_line_replaces_only_itself(out, tmp_path):
    copied = Path(copytree(out, tmp_path / "copied"))
    speed.main(["--quick", "--only", "sampler", "--sampler-labels", "800", "--out", str(copied)])
    before, after = (json.loads((folder / "table.json").read_text()) for folder in (out, copied))
    assert list(after) == list(before)
    assert {name for name in before if after[name] != before[name]} == {"sampler"}
    assert after["sampler"]["sizes"]["sampler_labels"] == 800
    assert "\n\nsampler: `python" in (copied / "table.md").read_text()


def test_quick_run_saves_nothing_without_out(monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(speed, "save", lambda *given, **_settings: saved.append(given))
    speed.main(["--quick", "--only", "metric-loss"])
    assert not saved
    printed = capsys.readouterr().out
    assert "| metric-loss |" in printed
    assert "Saved" not in printed


def test_rejects_unknown_lines(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--only", "sampler,samplers"])
    assert "got samplers" in capsys.readouterr().err


def test_rejects_processor_time_of_lines_with_worker_processes(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--clock", "processor", "--only", "sampler,gpu-loader,command"])
    assert "got command, gpu-loader. Name" in capsys.readouterr().err


def test_an_error_in_a_line_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def fail(_sizes):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(speed.LINES, "sampler", fail)
    with pytest.raises(SystemExit, match="ended with an error: sampler"):
        speed.main(["--quick", "--only", "sampler,metric-loss", "--out", str(tmp_path)])
    assert "RuntimeError: out of memory" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["metric-loss"]


def test_only_one_step_on_the_cpu_has_the_allocator_settings(monkeypatch):
    seen = []
    cost = Cost(1, 1, 1.0)
    monkeypatch.setattr(
        speed_training,
        "cost_in_process",
        lambda *_: seen.append(speed_training.ALLOCATOR.items() <= os.environ.items()) or cost,
    )
    speed_training.lines_of_cpu(QUICK)
    assert seen == [False, False, True, False]  # the last one is in bfloat16


def test_lines_of_a_gpu_have_a_note_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "| - | at most 1.03 | - | needs a GPU |" in markdown(speed.lines_of_gpu(QUICK))
    assert "| - | at most 1.03 | - | needs a GPU |" in markdown(speed.LINES["gpu-compiled"](QUICK))
    for name in ("gpu-clustering", "gpu-loader"):
        assert "| - | at most 1.00 | - | needs a GPU |" in markdown(speed.LINES[name](QUICK))


def test_lines_of_a_gpu_are_measured_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(speed_gpu, "PIXELS", 32)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot trace the type checks
    found = {
        name: speed.LINES[name](replace(QUICK, pictures=12), "cpu")
        for name in ("gpu", "gpu-clustering", "gpu-loader", "gpu-compiled")
    }
    counts = {"gpu": 1, "gpu-clustering": 3, "gpu-loader": 1, "gpu-compiled": 2}
    assert {name: len(rows) for name, rows in found.items()} == counts
    for name, rows in found.items():
        assert all(row.line == name and row.met is not None for row in rows)


def test_share_is_what_is_left_of_the_time_of_fit(out):
    [row] = rows_of(out, "share")
    [outside], [total], parts = row["ours"], row["theirs"], row["more"]["parts"]
    assert outside + parts["forward"] - parts["loading"] + parts["backward"] == pytest.approx(total)
    assert parts["embedding"] + parts["clustering"] + parts["loading"] < outside < total


def test_the_command_is_compared_with_its_settings_switched_off(monkeypatch, tmp_path):
    seen = []

    def train(*_, **options):
        trunk = speed_command.Machine.choose("cpu", image_size=32).place(nn.Conv2d(3, 3, 3))
        seen.append((trunk.weight.is_contiguous(memory_format=torch.channels_last), options.get("workers")))

    monkeypatch.setattr(speed_command.cli, "train", train)
    monkeypatch.setattr(speed_command, "keep_freed_memory", lambda: seen.append("allocator"))
    pictures = speed_pictures.make_pictures(tmp_path, 3)
    [row] = speed.lines_of_command(replace(QUICK, photos=str(tmp_path)))
    assert seen == ["allocator", (True, None), (False, 0)]
    assert row.note.startswith(f"{len(pictures)} pictures")


def test_ratios_of_the_search_have_the_recall_of_new_queries(out):
    rows = rows_of(out, "search")
    recalls = [float(row["note"].partition("recall@10 ")[2][:5]) for row in rows]
    assert len(rows) == 4
    assert all(0.85 < recall <= 1 for recall in recalls)


def test_ratio_is_the_median_over_pairs():
    row = Row("a", "b", "c", [1.0, 2.0, 9.0], [2.0, 2.0, 3.0], aim=1.0, note="d")
    assert row.ratios == [0.5, 1.0, 3.0]
    assert markdown([row]).splitlines()[-1] == (
        "| a | b | c | 1.00 (0.500 to 3.00) | at most 1.00, met | 2.00 and 2.00 s | d |"
    )
    assert "missed" in markdown([Row("a", "b", "c", [3.0], [2.0], aim=1.0)])


def test_order_alternates_after_a_warm_up():
    called = []

    def measure(name):
        return lambda: called.append(name) or len(called)

    assert measure_alternately(2, measure("a"), measure("b")) == [[3, 6], [4, 5]]
    assert called == ["a", "b", "a", "b", "b", "a"]


def test_memory_is_the_peak_of_the_function():
    cost = cost_in_process(partial, mul, b"x", 64 * 2**20)
    assert len(cost.found) == 64 * 2**20
    assert 63 < cost.mebibytes < 80
    assert 0 < cost.seconds < 10


def test_processor_time_does_not_include_waiting(monkeypatch):
    monkeypatch.setenv(speed_measurements.CLOCK_VARIABLE, "processor")
    assert speed_measurements.seconds(lambda: speed_measurements.time.sleep(0.3)) < 0.2


def test_random_clusters_are_unit_vectors_near_their_centers():
    made = speed_measurements.random_clusters(60, 32, 6, noise=0.3)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(60))
    nearest = (made @ made.T).fill_diagonal_(-1).argmax(dim=1)
    assert torch.equal(nearest % 6, torch.arange(60) % 6)


def test_loop_over_rows_is_the_published_loss():
    embeddings = functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]))
    positive, negatives = torch.tensor(0.8), torch.tensor([0.6, 0.96])  # the third row has no positive
    pull = (1 + (-2 * (positive - 0.5)).exp()).log() / 2
    first = (1 + (40 * (negatives[:1] - 0.5)).exp().sum()).log() / 40
    second = (1 + (40 * (negatives[1:] - 0.5)).exp().sum()).log() / 40
    found = loop_multi_similarity(embeddings, torch.tensor([0, 0, 1]), epsilon=0.3)
    torch.testing.assert_close(found, (2 * pull + first + second) / 3)


def test_objective_equals_that_of_scikit_learn():
    from sklearn.cluster import KMeans  # noqa: PLC0415

    rows = speed_measurements.random_clusters(200, 8, 10)
    fitted = KMeans(10, n_init=1, random_state=0).fit(rows.numpy())
    assert objective(rows, torch.from_numpy(fitted.labels_).long()) == pytest.approx(fitted.inertia_, rel=1e-4)


def test_faiss_and_the_library_find_the_same_clusters_from_the_same_start():
    rows = speed_measurements.random_clusters(300, 8, 10)
    labels = faiss_k_means(rows.numpy(), 10, 5, rows[:10].numpy())
    assert torch.equal(labels, k_means(rows, 10, start=rows[:10], max_iter=5))


def test_exponent_of_quadratic_growth_is_two():
    costs = {n: Cost(1e-6 * n**2, 0.1 * n, {"labels": 3.0}) for n in (10, 100, 1000)}
    assert exponents(costs) == pytest.approx({"time": 2, "memory": 1, "labels": 0}, abs=1e-9)
