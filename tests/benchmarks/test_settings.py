from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import settings
from metric_losses import LOSSES, OTHERS


def parse(*arguments):
    return settings.parse(settings.build_parser(None), arguments)


@pytest.mark.parametrize("data", ["glyphs", "cub100", "elsewhere/flowers"])
def test_without_options_the_settings_are_the_preset_and_results_go_to_the_data_sets_folder(data):
    args, found = parse("--data", data)
    name = Path(data).name
    assert found == settings.preset(name) == replace(found, data=name)
    assert args.out.parts[-3:] == ("benchmarks", "results", name)


def test_an_option_changes_its_setting_and_the_options_written_down_lead_to_the_same_settings():
    given = ["--steps", "7", "--trunk-lr", "0.5", "--loss", "nt-xent", "--validate", "--no-freeze-batch-norm"]
    args, found = parse("--data", "cub100", *given)
    standard = settings.preset("cub100")
    changed = {"steps": 7, "trunk_lr": 0.5, "loss": "nt-xent", "validate": True, "freeze_batch_norm": False}
    assert found == replace(standard, **changed)
    assert args.out.name == "cub100-validate"
    assert parse("--data", "cub100", *settings.options_of(found))[1] == found
    assert settings.options_of(standard) == []


@pytest.mark.parametrize("wrong", [["--loss", "tripled"], ["--steps", "many"], ["--nonsense", "1"]])
def test_an_unknown_option_or_choice_ends_the_program(wrong):
    with pytest.raises(SystemExit):
        parse("--data", "cub100", *wrong)


def test_a_folder_by_the_name_of_the_made_data_set_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--data", str(tmp_path / "glyphs"))
    assert "rename it" in capsys.readouterr().err


def test_every_loss_that_can_be_named_can_be_built():
    assert get_args(settings.Loss) == (*LOSSES, *OTHERS)


def test_pooling_is_no_choice_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        parse("--data", "glyphs", "--pooling", "average+maximum")
    assert "leave --pooling out" in capsys.readouterr().err
