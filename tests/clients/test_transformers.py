"""transformers: the wrapper of timm's models, automatic classes, pipeline, Trainer, backbones."""

import numpy as np
import pytest
import torch
from PIL import Image

import linvit
from tests.clients.conftest import SMALL

transformers = pytest.importorskip("transformers", reason="needs linvit[clients]")

pytestmark = pytest.mark.slow
INPUT = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 1.0}


@pytest.fixture
def model(small) -> torch.nn.Module:
    return small(num_classes=3).eval()


@pytest.fixture
def folder(model, tmp_path):
    """A folder as ``linvit train`` leaves it."""
    linvit.save_model(model, tmp_path, classes=["ant", "bee", "cat"], input_config=INPUT)
    return tmp_path


def test_wrapper_auto_classes_and_pipeline(folder, model):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for kind in (transformers.TimmWrapperForImageClassification, transformers.AutoModelForImageClassification):
            loaded = kind.from_pretrained(folder).eval()
            torch.testing.assert_close(loaded(x).logits, model(x))
            assert list(loaded.config.id2label.values()) == ["ant", "bee", "cat"]
        loaded = transformers.AutoModel.from_pretrained(folder).eval()
        torch.testing.assert_close(loaded(x).last_hidden_state, model.forward_features(x))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8))
        answers = transformers.pipeline("image-classification", model=str(folder), device="cpu")(image)
    assert {answer["label"] for answer in answers} == {"ant", "bee", "cat"}
    predicted = linvit.load_model(folder)
    processed = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = predicted(processed).softmax(-1)[0]
    top = max(answers, key=lambda answer: answer["score"])
    assert abs(top["score"] - expected.max().item()) < 1e-4


def test_trainer_learns_and_saves_what_linvit_loads(run_folder, tmp_path):
    model = transformers.AutoModelForImageClassification.from_pretrained(run_folder)
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    data = [{"pixel_values": colours[i % 3] + 0.1 * torch.randn(3, 32, 32), "labels": i % 3} for i in range(48)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=16,
        num_train_epochs=8,
        learning_rate=3e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="epoch",
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    before = trainer.evaluate(data)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < 0.8 * before
    trainer.save_model(str(tmp_path / "saved"))
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    x = torch.stack([item["pixel_values"] for item in data[:3]])
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model.eval()(x).logits)


def test_backbone_and_upernet(name):
    config = transformers.TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3])
    backbone = transformers.TimmBackbone(config, **SMALL[name] | {"img_size": 64})
    if "deit" not in name:
        maps = backbone(torch.randn(1, 3, 64, 96)).feature_maps
        assert [tuple(x.shape[2:]) for x in maps] == [(8, 12), (4, 6), (2, 3)]
    config = transformers.UperNetConfig(
        backbone_config=transformers.TimmBackboneConfig(backbone=name, out_indices=[0, 1, 2, 3]),
        hidden_size=16,
        num_labels=5,
        use_auxiliary_head=False,
    )
    segmenter = transformers.UperNetForSemanticSegmentation(config)
    out = segmenter(torch.randn(2, 3, 64, 96), labels=torch.randint(5, (2, 64, 96)))
    assert out.logits.shape == (2, 5, 64, 96)
    out.loss.backward()
    assert all(p.grad is not None for p in segmenter.backbone.parameters() if p.requires_grad)
