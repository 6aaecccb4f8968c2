import sys

import jaxtyping
import pytest
import torch
from torch import nn

from udmlss import EmbeddingModel, embedder_from_features
from udmlss.backbones import Backbone, load_backbone
from udmlss.models import export, export_onnx, export_torch, save_model

pytestmark = pytest.mark.xdist_group("backbones")  # which one process then imports
NORMALIZATION = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.2)}
FLAT = Backbone("flat", nn.Flatten(), 4, **NORMALIZATION)


def averaged():
    return torchvision_backbone().without_colors().without_orientation()


def transformers_backbone():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    return Backbone("dinov2", transformers.Dinov2Model(transformers.Dinov2Config(**small)), 28, **NORMALIZATION)


def timm_backbone():
    pytest.importorskip("timm")
    return load_backbone("timm/test_vit", image_size=32, pretrained=False)


def torchvision_backbone():
    return load_backbone("torchvision/resnet18", image_size=32, pretrained=False)


def model_of(backbone):
    """Return a model in training mode whose embedder is a PCA of features."""
    size = backbone.image_size
    with torch.no_grad():
        features = backbone.trunk.eval()(torch.rand(12, 3, size, size))
    features = getattr(features, "pooler_output", features)
    return EmbeddingModel(backbone.trunk, embedder_from_features(features, 4)).train()


def expected(model, backbone, pixels):
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
    with torch.no_grad():
        return model.eval()((pixels / 255 - mean) / std)


def pictures(backbone, n):
    return torch.randint(256, (n, 3, backbone.image_size, backbone.image_size), dtype=torch.uint8)


@pytest.mark.parametrize("build", [torchvision_backbone, timm_backbone, transformers_backbone, averaged])
def test_onnxruntime_computes_the_same_embeddings_of_any_number_of_pictures(build, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    backbone = build()
    model = model_of(backbone)
    export_onnx(model, tmp_path / "model.onnx", backbone=backbone)
    assert model.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 2, 5):
        pixels = pictures(backbone, n)
        (found,) = session.run(["embeddings"], {"images": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(model, backbone, pixels), atol=1e-4, rtol=0)
        model.train()


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_torch_export_computes_the_same_embeddings_of_any_number_of_pictures(pixels, tmp_path):
    model = torch.compile(model_of(FLAT)) if pixels == "uint8" else model_of(FLAT)
    export_torch(model, tmp_path / "new" / "model.pt2", backbone=FLAT, pixels=pixels)
    program = torch.export.load(tmp_path / "new" / "model.pt2").module()
    for n in (1, 2, 5):
        images = pictures(FLAT, n)
        found = program(images if pixels == "uint8" else images / 255)
        torch.testing.assert_close(found, expected(model_or_original(model), FLAT, images))


def model_or_original(model):
    return getattr(model, "_orig_mod", model)


def test_a_program_that_computes_other_embeddings_is_an_error_and_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "_TOLERANCE", -1)
    (tmp_path / "model").write_text("an earlier file")
    for function in (export_onnx, export_torch):
        with pytest.raises(ValueError, match="must compute the embeddings of the model up to -1, got a difference of"):
            function(model_of(FLAT), tmp_path / "model", backbone=FLAT)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier file"]


@pytest.mark.parametrize("function", [export_torch, export_onnx, save_model])
def test_a_full_disk_is_an_error_and_leaves_earlier_files_unchanged(function, tmp_path):
    resource = pytest.importorskip("resource")  # Windows has no limits of the size of files
    if function is export_onnx:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model, path = model_of(FLAT), tmp_path / "model"
    function(model, path, backbone=FLAT)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match=r"File too large"):
            function(model, path, backbone=FLAT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_wrong_arguments_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = model_of(FLAT)
    for wrong, message in (
        ({"backbone": None}, "`backbone` must be a Backbone, got NoneType"),
        ({"pixels": "int8"}, "`pixels` must be one of 'uint8', 'float32', got 'int8'"),
        ({"path": tmp_path}, "An output file must not be a folder, got"),
        ({"model": nn.Flatten()}, "`model` must have a `trunk`"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            export_torch(**{"model": model, "path": tmp_path / "x", "backbone": FLAT} | wrong)


def test_a_missing_package_is_an_error_with_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r'Export to ONNX requires onnx, got none. Install it: pip install "udmlss\[onnx\]"'
    ):
        export_onnx(model_of(FLAT), tmp_path / "model.onnx", backbone=FLAT)
