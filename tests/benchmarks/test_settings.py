from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import settings
from metric_losses import LOSSES, OTHERS


def parse(*arguments):
    return settings.parse(settings.build_parser(None), arguments)


@pytest.mark.parametrize("data", ["glyphs", *settings.PHOTO_SETS, "elsewhere/flowers"])
def test_settings_without_options_are_the_preset(data):
    args, found = parse("--data", data)
    assert args.data == data
    name = Path(data).name
    assert found == settings.preset(name) == replace(found, data=name)
    assert args.out.parts[-3:] == ("benchmarks", "results", name)


def test_root_holds_the_named_datasets_and_a_folder_is_its_own_root():
    assert parse("--data", "logos", "--root", "sets")[0].root == Path("sets/logos")
    assert parse("--data", "elsewhere/flowers", "--root", "sets")[0].root == Path("elsewhere/flowers").resolve()


@pytest.mark.parametrize(
    ("options", "suffix"),
    [
        (["--protocol", "own"], "-own"),
        (["--validate"], "-validate"),
        (["--validate", "--protocol", "own"], "-own-validate"),
    ],
)
def test_each_protocol_and_split_has_its_folder_of_runs(options, suffix):
    args, found = parse("--data", "logos", *options)
    assert args.out.name == f"logos{suffix}"
    assert settings.options_of(found) == options


def test_options_change_settings_and_can_be_written_from_them():
    given = ["--steps", "7", "--trunk-lr", "0.5", "--loss", "nt-xent", "--validate", "--no-freeze-batch-norm"]
    args, found = parse("--data", "cub100", *given)
    standard = settings.preset("cub100")
    changed = {"steps": 7, "trunk_lr": 0.5, "loss": "nt-xent", "validate": True, "freeze_batch_norm": False}
    assert found == replace(standard, **changed)
    assert args.out.name == "cub100-validate"
    assert parse("--data", "cub100", *settings.options_of(found))[1] == found
    assert settings.options_of(standard) == []


@pytest.mark.parametrize("wrong", [["--loss", "tripled"], ["--steps", "many"], ["--nonsense", "1"]])
def test_rejects_unknown_options_and_choices(wrong):
    with pytest.raises(SystemExit):
        parse("--data", "cub100", *wrong)


def test_rejects_a_folder_with_the_name_of_a_dataset(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--data", str(tmp_path / "glyphs"))
    assert "rename it" in capsys.readouterr().err


def test_every_loss_can_be_built():
    assert set(get_args(settings.Loss)) == {*LOSSES, *OTHERS}
