"""The registry of tasks: all that it names is there, and is of the kind that it says."""

import subprocess
import sys

import pytest
from torch import nn

from linvit.data.module import VisionData
from linvit.heads import DenseModel
from linvit.inference.base import Predictor
from linvit.registry import TASKS
from linvit.tasks.base import VisionTask


@pytest.mark.parametrize("name", TASKS)
def test_what_a_task_names_is_there(name: str) -> None:
    task = TASKS[name]
    training, data = task.load_training()
    assert issubclass(training, VisionTask)
    assert issubclass(data, VisionData)
    assert issubclass(task.load_predictor(), Predictor)
    assert callable(task.load_evaluation())
    if task.network is None:
        assert name in ("classify", "linearize", "quantize", "pretrain")
        for load in (task.load_network, task.load_export):
            with pytest.raises(ValueError, match="models for classification are timm's"):
                load()
    else:
        model = task.load_network()(num_classes=2, backbone="test_efficientnet")
        assert isinstance(model, DenseModel)
        assert model.task == name
        body, outputs = task.load_export()(model).body(features=True)
        assert isinstance(body, nn.Module)
        assert outputs


def loaded_by(*argv: str) -> set[str]:
    """Run a command in a process of its own; return the modules that it imported."""
    code = f"import sys; from linvit.cli.main import main; main({list(argv)}); print('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_help_imports_nothing_of_any_task(command: str) -> None:
    loaded = loaded_by(command, "--help")
    assert f"linvit.cli.{command}" in loaded
    heavy = {"matplotlib", "lightning", "torchmetrics", "faster_coco_eval", "segmentation_models_pytorch"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith(("linvit.inference.", "linvit.heads.", "linvit.tasks"))}
