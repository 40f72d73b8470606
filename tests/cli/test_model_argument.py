"""MODEL means the same in every command that takes one."""

import pytest
import timm
import torch
from PIL import Image

import linvit
from linvit.checkpoints import load_model

COMMANDS = {
    "eval": ["eval", "MODEL", "mnist5k"],
    "predict": ["predict", "MODEL", "mnist5k"],
    "export": ["export", "MODEL", "--to", "torch"],
    "inspect": ["inspect", "MODEL", "mnist5k"],
    "bench": ["bench", "MODEL", "--rounds", "1", "--no-memory"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("care_s9", "unknown model 'care_s9': give a run folder, a checkpoint file, hf-hub:USER/REPO, package:"),
        ("resnet18.nobody_in1k", "unknown model 'resnet18.nobody_in1k'"),
        ("runs/nothing", "no run folder or checkpoint file at runs/nothing"),
        ("nothing.pth", "no run folder or checkpoint file at nothing.pth"),
        ("package:nothing", "unknown model 'package:nothing'; packaged are package:efficientnet_lite0"),
    ],
)
def test_what_is_no_model_has_the_same_line_everywhere(linvit_command, in_tmp, command, model, line):
    said = linvit_command(*[model if word == "MODEL" else word for word in COMMANDS[command]])
    assert said.code == 2
    assert line in said.err
    assert len(said.err.splitlines()) == 1


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_bench_takes_a_packaged_model(linvit_command):
    arguments = ("--rounds", "1", "--warmup", "0", "--no-memory", "--img-size", "32", "--json")
    said = linvit_command("bench", "package:efficientnet_lite0", *arguments)
    assert said.code == 0, said.err
    assert said.json["contenders"][0]["params"] == pytest.approx(4.65e6, rel=0.01)


def test_inspect_takes_a_name_untrained(linvit_command, in_tmp):
    said = linvit_command("inspect", "resnet10t", "mnist5k", "--untrained")
    assert said.code == 2
    assert "attention" in said.err  # it was built, without a network


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224", "resnet10t", "linglo_b0"])
def test_a_size_is_set_where_a_model_is_built_for_one(name):
    model = load_model(name, untrained=True, img_size=(64, 96))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)


def test_a_saved_model_takes_the_size_too(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=2, depth=1)
    linvit.save_model(model, tmp_path, classes=["a", "b"])
    assert load_model(tmp_path / "model.safetensors", img_size=(48, 32)).patch_embed.grid_size == (3, 2)


def model_of_channels(folder, channels):
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3, in_chans=channels)
    linvit.save_model(model, folder, classes=["ant", "bee", "cat"])
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "MODEL", "IMAGE"],
        ["eval", "MODEL", "DATA"],
        ["export", "MODEL", "--to", "torch", "--out", "m.pt2", "--images", "IMAGE"],
        ["bench", "MODEL", "--rounds", "1", "--no-memory", "--img-size", "32"],
    ],
)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three(linvit_command, in_tmp, photos, command, channels):
    given = {"MODEL": model_of_channels("model", channels), "DATA": photos, "IMAGE": photos / "val" / "ant" / "0.png"}
    said = linvit_command(*[given.get(word, word) for word in command])
    if channels == 1 or command[0] == "bench":
        assert said.code == 0, said.err
        return
    assert said.code == 2
    line = "takes images of 4 channels, and image files have 3, or 1 where they are grey"
    assert said.err == f"linvit: error: the model {line}\n"


def test_one_channel_sees_what_a_person_calls_grey(linvit_command, in_tmp):
    Image.new("RGB", (64, 64), (10, 200, 90)).save("colour.png")
    Image.open("colour.png").convert("L").save("grey.png")
    said = linvit_command("predict", model_of_channels("model", 1), "colour.png", "grey.png", "--json")
    first, second = (each["top"] for each in said.json)
    assert first == second


@pytest.mark.parametrize("raw", [[], ["--with-preprocessing"]])
def test_an_export_for_other_channels_is_compared_on_noise(linvit_command, in_tmp, raw):
    model = model_of_channels("model", 4)
    said = linvit_command("export", model, "--to", "torch", "--out", "m.pt2", "--img-size", "64", "--json", *raw)
    assert said.code == 0, said.err
    assert said.json["noise"]
    assert said.json["images"] == 12
    assert said.json["max_error"] < 1e-4


@pytest.mark.parametrize(
    "task", [["--model.model_args={in_chans: 1}"], ["--task=detect", "--model.backbone_args={in_chans: 4}"]]
)
def test_training_reads_colour(linvit_command, in_tmp, task):
    said = linvit_command("train", *task, "--out=run")
    assert said.code == 2
    assert "in_chans must be 3" in said.err
