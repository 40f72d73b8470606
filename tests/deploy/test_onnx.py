"""The ONNX file computes what the model computes, in any batch size, and is complete in itself."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import linvit
from linvit.deploy import export_onnx
from tests.conftest import CLASSES


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(linvit.load_model(run_folder), path, (32, 32), CLASSES)
    return path


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_file_computes_what_the_model_computes(run_folder, exported, batch):
    session = onnxruntime.InferenceSession(str(exported))
    images = torch.randn(batch, 3, 32, 32)
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = linvit.load_model(run_folder)(images)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_file_is_one_file_and_knows_its_classes(exported):
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    properties = {p.key: p.value for p in onnx.load(exported).metadata_props}
    assert json.loads(properties["classes"]) == CLASSES
