"""Loading and saving checkpoints: every wrapping that is met, nothing unpickled, nothing half-loaded."""

import argparse
import copy
import json
import logging
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

import linvit
from linvit.checkpoints import _Unfilled, class_names
from tests.models import every_model

TINY = {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8), "head_dims": (None, None, 4, 8)}
INPUT = {
    "input_size": (3, 64, 64),
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


def tiny_care(seed: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("care_s0", **TINY | {"num_classes": 5} | kwargs)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


class Mischief:
    """Unpickling it would leave a mark."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.mischief = True",))


def wrappings(weights):
    other = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    return {
        "plain.pth": weights,
        "model.pth.tar": {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "state_dict.pt": {"state_dict": weights, "optimizer": {"state": {}}},
        "average.pth": {"model": other, "model_ema": weights},
        "average2.pth": {"state_dict": other, "state_dict_ema": weights},
        "ddp.pth": {f"module.{name}": tensor for name, tensor in weights.items()},
        "compiled.pth": {"model": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}},
        "lightning.ckpt": {"state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}},
    }


def test_loads_every_wrapping(tmp_path):
    model = tiny_care()
    for filename, content in wrappings(model.state_dict()).items():
        torch.save(content, tmp_path / filename)
        other = tiny_care(seed=1)
        linvit.load_checkpoint(other, tmp_path / filename)
        assert same_weights(model, other), filename
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    other = tiny_care(seed=1)
    linvit.load_checkpoint(other, tmp_path / "plain.safetensors")
    assert same_weights(model, other)


def test_another_number_of_classes_reinitialises_the_heads_with_a_warning(tmp_path, caplog):
    model = tiny_care()
    torch.save(model.state_dict(), tmp_path / "five.pth")
    other = tiny_care(seed=1, num_classes=7)
    fresh = copy.deepcopy(other.head.fc)
    with caplog.at_level(logging.WARNING):
        linvit.load_checkpoint(other, tmp_path / "five.pth")
    assert "trained on 5 classes, the model has 7: head.fc.weight" in caplog.text
    assert torch.equal(
        other.stages[3].blocks[0].inter_layer.inter1_fc1.weight, model.stages[3].blocks[0].inter_layer.inter1_fc1.weight
    )
    assert torch.equal(other.head.norm.weight, model.head.norm.weight)
    assert same_weights(fresh, other.head.fc)


def test_no_classes_takes_no_heads_and_channels_are_adapted(tmp_path):
    model = tiny_care()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    backbone = tiny_care(seed=1, num_classes=0, in_chans=1)
    linvit.load_checkpoint(backbone, tmp_path / "a.pth")
    torch.testing.assert_close(backbone.stem[0].weight, model.stem[0].weight.sum(dim=1, keepdim=True))


def test_a_wrong_file_names_the_tensors_and_loads_nothing(tmp_path):
    weights = tiny_care().state_dict()
    weights["extra.weight"] = weights.pop("stem.0.bias")
    weights["stem.1.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "wrong.pth")
    model = tiny_care(seed=1)
    before = copy.deepcopy(model)
    expected = (
        "the checkpoint does not fit care_s0, nothing was loaded: 1 missing: stem.0.bias; "
        "1 unexpected: extra.weight; 1 of another shape: stem.1.bias [3] for [16]"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        linvit.load_checkpoint(model, tmp_path / "wrong.pth")
    assert same_weights(model, before)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"\d+ missing: stem.0.weight, .* and \d+ more; \d+ unexpected: conv1"):
        linvit.load_checkpoint(tiny_care(), tmp_path / "resnet.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_unreadable_files_are_named(tmp_path, suffix):
    good = tmp_path / "good.pth"
    torch.save(tiny_care().state_dict(), good)
    contents = {
        "text": (b"hello\nworld", r"not a checkpoint but text: 'hello'"),
        "page": (b"\n<!DOCTYPE html><p>", "not a checkpoint but a web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS"),
        "empty": (b"", "the file is empty"),
        "cut": (good.read_bytes()[:5000], "not a checkpoint, or damaged"),
    }
    for name, (content, why) in contents.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*{name}\.{suffix}: {why}") as error:
            linvit.load_checkpoint(tiny_care(), path)
        assert "\n" not in str(error.value)
        assert "Weights only" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint file at .*absent.{suffix}"):
        linvit.load_checkpoint(tiny_care(), tmp_path / f"absent.{suffix}")


def test_a_file_without_tensors_is_named(tmp_path):
    torch.save({"model": {"epoch": 3}}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        linvit.load_checkpoint(tiny_care(), tmp_path / "none.pth")


def test_nothing_is_executed(tmp_path):
    import builtins

    torch.save({"model": tiny_care().state_dict(), "config": Mischief()}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"besides tensors it holds builtins\.exec.*save its state dict alone"):
        linvit.load_checkpoint(tiny_care(), tmp_path / "hostile.pth")
    assert not hasattr(builtins, "mischief")


def test_saved_model_comes_back_by_linvit_and_by_timm(tmp_path):
    model = tiny_care().eval()
    classes = ["ant", "bee", "cat", "dog", "eel"]
    linvit.save_model(model, tmp_path / "run", classes=classes, input_config=INPUT, metrics={"top1": 0.5})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    x = torch.randn(1, 3, 64, 64)
    for loaded in (
        linvit.load_model(tmp_path / "run"),
        linvit.load_model(tmp_path / "run" / "model.safetensors"),
        timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval(),
    ):
        torch.testing.assert_close(loaded(x), model(x))
        assert class_names(loaded) == classes
        config = timm.data.resolve_model_data_config(loaded)
        assert {key: tuple(config[key]) if isinstance(config[key], list) else config[key] for key in INPUT} == INPUT
    assert json.loads((tmp_path / "run" / "config.json").read_text())["metrics"] == {"top1": 0.5}


@every_model
def test_a_bare_file_finds_its_model(tmp_path, name):
    model = timm.create_model(name, num_classes=3).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "bare.pth")
    loaded = linvit.load_model(tmp_path / "bare.pth")
    assert loaded.pretrained_cfg["architecture"] == name
    assert same_weights(model, loaded)
    assert not loaded.training


def test_a_run_s_last_checkpoint_keeps_its_class_names(tmp_path):
    model = tiny_care()
    linvit.save_model(tiny_care(seed=1), tmp_path, classes=["ant", "bee", "cat", "dog", "eel"], input_config=INPUT)
    torch.save({"state_dict": {f"model.{name}": t for name, t in model.state_dict().items()}}, tmp_path / "last.ckpt")
    loaded = linvit.load_model(tmp_path / "last.ckpt")
    assert same_weights(model, loaded)
    assert class_names(loaded) == ["ant", "bee", "cat", "dog", "eel"]


def test_load_model_names_what_it_cannot_find(tmp_path):
    with pytest.raises(ValueError, match=r"unknown model 'care_s9': give a run folder, .* \(care_s0"):
        linvit.load_model("care_s9")
    with pytest.raises(FileNotFoundError, match="no run folder or checkpoint file at runs/absent"):
        linvit.load_model("runs/absent")
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no model.safetensors and no config.json"):
        linvit.load_model(tmp_path)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"fits no linvit model; the nearest, \w+, differs in \d+ tensors"):
        linvit.load_model(tmp_path / "resnet.pth")


def test_a_failed_save_leaves_the_old_model(tmp_path):
    linvit.save_model(tiny_care(), tmp_path, classes=list("abcde"), input_config=INPUT)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = tiny_care(seed=1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        linvit.save_model(other, tmp_path, classes=list("abcde"), input_config=INPUT, metrics={"top1": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_finding_the_model_leaves_out_filling_alone():
    """What changes a shape or a real value happens, whatever its name ends in."""
    with _Unfilled():
        real = torch.ones(2, 3).mul_(2).t_()
        table = torch.empty(2, 3, device="meta").normal_().t_()
        with torch.device("meta"):
            layer = torch.nn.Linear(2, 3)
            torch.nn.init.trunc_normal_(layer.weight)
    assert real.shape == table.shape == (3, 2)
    assert real.sum() == 12
    assert layer.weight.is_meta


@pytest.mark.parametrize("prefix", ["net.", "model._orig_mod.", "student.", "a.b.c."])
def test_a_prefix_of_any_kind_is_taken_off(tmp_path, prefix):
    model = tiny_care()
    content = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": content | {"criterion.weight": torch.ones(5)}}, tmp_path / "a.pth")
    other = tiny_care(seed=1)
    linvit.load_checkpoint(other, tmp_path / "a.pth")
    assert same_weights(model, other)


def test_a_prefixed_file_finds_its_model_and_its_channels(tmp_path):
    model = timm.create_model("care_s0", num_classes=3, in_chans=4).eval()
    torch.save({f"student.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "a.pth")
    loaded = linvit.load_model(tmp_path / "a.pth")
    assert loaded.in_chans == 4
    assert same_weights(model, loaded)


def test_an_average_under_a_prefix_is_preferred(tmp_path):
    model, raw = tiny_care(), tiny_care(seed=1)
    content = {f"student.{name}": tensor for name, tensor in raw.state_dict().items()}
    content |= {f"ema_student.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(content, tmp_path / "a.pth")
    other = tiny_care(seed=2)
    linvit.load_checkpoint(other, tmp_path / "a.pth")
    assert same_weights(model, other)


def test_saving_takes_classes_and_input_from_the_model(tmp_path):
    model = tiny_care().eval()
    linvit.save_model(model, tmp_path / "first", classes=list("abcde"), input_config=INPUT)
    loaded = linvit.load_model(tmp_path / "first")
    linvit.save_model(loaded, tmp_path / "second")
    again = linvit.load_model(tmp_path / "second")
    assert class_names(again) == list("abcde")
    assert timm.data.resolve_model_data_config(again) == timm.data.resolve_model_data_config(loaded)
    linvit.save_model(model, tmp_path / "bare")
    assert class_names(linvit.load_model(tmp_path / "bare")) == ["0", "1", "2", "3", "4"]
