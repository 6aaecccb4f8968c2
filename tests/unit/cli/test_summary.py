"""The sentences about a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from udmlss import FitResult, LabelFreeScores, PseudoLabels, RoundReport
from udmlss.backbones import Backbone
from udmlss.cli import TrainedRun

BACKBONE = Backbone("own", nn.Flatten(), 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def scores(value):
    return LabelFreeScores(self_retrieval=0.5, shared_neighbors=value, effective_rank=2.0, spread=value)


def report(number, score):
    return RoundReport(number, 10 * (number + 1), 2, 1, 0.5, 0.4, None, 1.0, 1.0, None, None, None, scores(score), 60.0)


def run(weights_step, *after):
    history = tuple(report(number, score) for number, score in enumerate(after))
    result = FitResult(history, None, "max_steps", scores(0.4), weights_step)
    return TrainedRun.of(Path("run"), result, LABELS, BACKBONE)


LABELS = PseudoLabels.from_labels([0, 0, 1, 1, 1, -1])


@pytest.mark.parametrize(
    ("weights_step", "after", "expected"),
    [
        (0, (0.3, 0.2), "The model has the weights of step 0: training did not improve the score."),
        (20, (0.5, 0.6), "The model has the weights of the last step, which have the highest score: training improved"),
        (10, (0.6, 0.5), "The model has the weights of step 10, which have the highest score: training improved it by"),
        (10, (0.405, 0.3), "The model has the weights of step 10: training hardly changed the score."),
    ],
)
def test_it_says_whether_training_helped(weights_step, after, expected):
    text = run(weights_step, *after).describe()
    assert expected in text
    assert f"0.400 before training, {', '.join(f'{each:.3f}' for each in after)} after the rounds" in text
    assert "Trained for 20 steps in 2 rounds, 2 minutes." in text
    assert "2 clusters of 2 to 3 images; 1 image in no cluster." in text


def test_of_many_rounds_the_first_and_last_scores_are_listed():
    text = run(100, *(0.5 + number / 100 for number in range(10))).describe()
    assert "0.400 before training, 0.500, 0.510, ..., 0.580, 0.590 after the rounds." in text


def test_it_lists_the_files_that_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.html").touch()
    text = str(replace(run(0, 0.3, 0.2), folder=tmp_path))
    assert "report.html  clusters" in text
    assert "images.parquet" not in text


def test_the_name_of_the_folder_is_quoted_for_the_shell():
    assert str(replace(run(0, 0.3), folder=Path("my run"))).endswith("udmlss search 'my run' IMAGE")


def test_it_is_the_same_after_it_was_written_and_read():
    written = replace(run(10, 0.6, 0.5), ignores_colors=True, ignores_orientation=True)
    assert "The embeddings ignore the colors and the orientation of the images." in written.describe()
    assert TrainedRun.from_dict(Path("run"), json.loads(json.dumps(written.as_dict()))) == written
