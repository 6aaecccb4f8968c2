import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel
from udmlss.models import save_model

hub = pytest.importorskip("huggingface_hub")
IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model():
    return EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 12)), nn.Linear(12, 4)).eval()


def trunk():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


def test_from_pretrained_loads_a_folder_without_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    save_model(model, "user/birds")
    for name in ("user/birds", Path("user/birds"), tmp_path / "user" / "birds"):
        assert torch.equal(EmbeddingModel.from_pretrained(name, trunk=trunk())(IMAGES), model(IMAGES))


def test_a_model_goes_to_the_hub_and_comes_back(model, tmp_path, monkeypatch):
    created = []

    def create_repo(name, *, private, exist_ok):
        created.append((name, private, exist_ok))
        return hub.RepoUrl(f"https://huggingface.co/{name}")

    def upload_folder(*, repo_id, folder_path):
        shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    def snapshot_download(name, *, revision, allow_patterns):
        assert allow_patterns == ["config.json", "model.safetensors"]
        return str(tmp_path / (revision or name))

    def file_exists(repo_id, filename):
        return (tmp_path / repo_id / filename).exists()

    for function in (create_repo, upload_folder, snapshot_download, file_exists):
        monkeypatch.setattr(hub, function.__name__, function)
    address = model.push_to_hub("user/birds", recipe={"steps": 3}, private=True)
    assert created == [("user/birds", True, True)]
    assert address == "https://huggingface.co/user/birds"
    card = hub.ModelCard.load(tmp_path / "user" / "birds" / "README.md")
    assert card.data.library_name == "udmlss"
    assert 'snapshot_download("user/birds")' in card.text
    loaded = EmbeddingModel.from_pretrained("user/birds", trunk=trunk())
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    with pytest.raises(ValueError, match="which does not exist"):
        EmbeddingModel.from_pretrained("user/birds", trunk=trunk(), revision="v9")
    card.text = "My own card"
    card.save(tmp_path / "user" / "birds" / "README.md")
    model.push_to_hub("user/birds")
    assert "My own card" in (tmp_path / "user" / "birds" / "README.md").read_text()


@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_is_an_error(model):
    with pytest.raises(ConnectionError, match=r"The transfer of 'user/no-birds' from or to .* failed"):
        EmbeddingModel.from_pretrained("user/no-birds")
    with pytest.raises(ConnectionError, match=r"The transfer of 'user/birds' .* failed"):
        model.push_to_hub("user/birds")


@pytest.mark.usefixtures("offline")
def test_an_invalid_name_is_an_error(model):
    with pytest.raises(ValueError, match="A repository must be named owner/name, got 'my birds/2'"):
        EmbeddingModel.from_pretrained("my birds/2")
    with pytest.raises(ValueError, match="A repository must be named owner/name, got 'my birds'"):
        model.push_to_hub("my birds")
    for name in ("birds", "runs/birds/model", "/birds"):
        with pytest.raises(ValueError, match="which does not exist"):
            EmbeddingModel.from_pretrained(name)


def test_an_unknown_repository_is_an_error(monkeypatch):
    def unknown(*_arguments, **_settings):
        raise hub.errors.RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "snapshot_download", unknown)
    with pytest.raises(ValueError, match=r"repository of the Hugging Face Hub that you may read, got 'user/birds'"):
        EmbeddingModel.from_pretrained("user/birds")


def test_a_missing_package_is_an_error_with_the_line_to_type(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r'requires huggingface_hub, got none. Install it: pip install "udmlss\[hub\]"'
    ):
        model.push_to_hub("user/birds")
