"""Checkpoints: load weights into a model, find the model that belongs to a file, save a model with its description.

A saved model is a folder with ``model.safetensors`` and ``config.json`` in timm's format, so that timm loads it too:
``timm.create_model("local-dir:FOLDER", pretrained=True)``. A model whose attention was replaced
(:func:`linvit.linearize`) and one for detection or segmentation (:mod:`linvit.heads`) are described in ``config.json``,
too; those are loaded by :func:`load_model` alone.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import save
from timm.data import ImageNetInfo, resolve_input_data_config
from timm.models import adapt_input_conv
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.overrides import TorchFunctionMode

from linvit.checks import did_you_mean, first_line
from linvit.files import atomic_write
from linvit.heads import DenseModel, build
from linvit.linearization import Described, describe, rebuild
from linvit.models import list_models
from linvit.registry import load_exported, load_quantization
from linvit.weights import SUFFIXES, Fit, as_tuple, compare, prepare_state_dict, read_state_dict
from linvit.weights.description import CONFIG_NAME, read_description
from linvit.weights.hub import WEIGHTS_FILES, check_reachable, create_pretrained
from linvit.weights.packaged import PACKAGED, load_packaged

__all__ = [
    "class_names",
    "conversion",
    "is_registered",
    "load_checkpoint",
    "load_model",
    "readable_names",
    "save_model",
    "task_of",
]

WEIGHTS_NAME = "model.safetensors"
CONVERSION, QUANTIZATION = "linearize", "quantize"
CLASSIFY = "classify"


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a published or own checkpoint into a model.

    A classifier for another number of classes is left out, and so keeps its new initialisation (a warning says so);
    an input convolution for another number of channels is adapted as timm does.

    Args:
        model: A model of linvit or timm.
        path: A ``.safetensors`` or torch file; see :func:`linvit.weights.read_state_dict`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unreadable, or does not fit: the message names the tensors, and nothing was loaded.
    """
    _load_state_dict(model, read_state_dict(path))


def _load_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    state_dict = prepare_state_dict(state_dict, model)
    for name in as_tuple(getattr(model, "pretrained_cfg", {}).get("first_conv")):
        in_chans = model.get_parameter(f"{name}.weight").shape[1]
        if state_dict[f"{name}.weight"].shape[1] != in_chans:
            state_dict[f"{name}.weight"] = adapt_input_conv(in_chans, state_dict[f"{name}.weight"])
    model.load_state_dict(state_dict, strict=False)  # all but a classifier of another size is there: just checked


def load_model(
    spec: str | Path, untrained: bool = False, *, img_size: tuple[int, int] | None = None, exported: bool = False
) -> nn.Module:
    """Build the model that ``spec`` names, with its weights, in evaluation mode. All commands find models by this.

    Args:
        spec: A folder written by :func:`save_model` (a run folder), a checkpoint file (its architecture is found by
            its tensors), ``hf-hub:USER/REPO``, ``package:NAME`` (weights that come as a package), or a registered name,
            which takes the published weights.
        untrained: Take random weights for a registered name, the same every time.
        img_size: Height and width in pixels, to set up a model that is built for one size; None leaves it at its own.
        exported: Take a classifier in a file that ``linvit export`` wrote, too: it computes logits and no more.

    Raises:
        FileNotFoundError: ``spec`` looks like a path and nothing is there, or the folder holds no model.
        ConnectionError: Published weights are neither here nor can be fetched.
        ValueError: ``spec`` names no model, the file fits none, or it is an exported one and ``exported`` is false.
    """
    path, name = Path(spec), str(spec)
    registered = is_registered(spec)
    if untrained and not registered:
        raise ValueError(f"untrained is for registered names, and {name!r} is none")
    if path.is_dir():
        missing = [name for name in (WEIGHTS_NAME, CONFIG_NAME) if not (path / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{path} is no run folder: it has no {' and no '.join(missing)}")
        model = _from_folder(path)
    elif path.is_file() and path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).is_file():
        return load_model(path.parent, img_size=img_size)
    elif path.is_file() and path.suffix == ".ckpt" and (path.parent / CONFIG_NAME).is_file():
        model = load_model(path.parent)
        load_checkpoint(model, path)
    elif path.is_file() and (opened := load_exported()(path, exported)) is not None:
        model = opened
    elif path.is_file():
        model = _model_for(path)
    elif name.startswith("hf-hub:"):
        model = _from_hub(name)
    elif name.startswith("package:"):
        model = load_packaged(name)
    elif registered:
        model = _untrained(name, img_size) if untrained else _published(name)
    elif name.endswith(SUFFIXES) or (path.suffix and not timm.is_model(name)) or len(path.parts) > 1:
        raise FileNotFoundError(f"no run folder or checkpoint file at {path}")
    else:
        raise ValueError(
            f"unknown model {name!r}: give a run folder, a checkpoint file, hf-hub:USER/REPO, {', '.join(PACKAGED)} or "
            f"a registered name ({', '.join(list_models()[:3])}, ... or any of timm's)"
            f"{did_you_mean(name, timm.list_models() + timm.list_pretrained(), otherwise='')}"
        )
    if img_size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size)  # type: ignore[operator]
    return model.eval()


def is_registered(spec: str | Path) -> bool:
    """Tell whether a MODEL is a name that timm knows, with the weights that it may name after a point, and no path."""
    name = str(spec)
    return not Path(spec).exists() and timm.is_model(name) and ("." not in name or name in timm.list_pretrained())


def _untrained(name: str, img_size: tuple[int, int] | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if img_size is not None:
            with contextlib.suppress(TypeError):  # models of convolutions alone know no size
                return timm.create_model(name, img_size=img_size)
        return timm.create_model(name)


def _published(name: str) -> nn.Module:
    try:
        return create_pretrained(name)
    except (ConnectionError, ValueError) as error:
        packaged = f"package:{name}"
        hint = f", or {packaged}, whose weights come with linvit" if packaged in PACKAGED else ""
        raise type(error)(f"{error}; for random weights: --untrained (untrained=True){hint}") from error


def conversion(folder: Path) -> list[Described] | None:
    """Return what a saved model's description says about attention that was replaced; None where none was."""
    return read_description(folder).get(CONVERSION)


def task_of(spec: str | Path) -> str:
    """Return the task of the model that :func:`load_model` finds at ``spec``: "classify" unless it says another."""
    if str(spec).startswith("hf-hub:"):
        return read_description(_hub_folder(str(spec))).get("task", CLASSIFY)
    path = Path(spec)
    folder = path if path.is_dir() else path.parent
    return read_description(folder).get("task", CLASSIFY) if (folder / CONFIG_NAME).is_file() else CLASSIFY


def _from_folder(folder: Path) -> nn.Module:
    described = read_description(folder)
    state_dict = read_state_dict(folder / WEIGHTS_NAME)
    try:
        if "task" in described:
            model: Any = build(described["task"], described["architecture"])
        else:
            model = timm.create_model(f"local-dir:{folder}")
            if CONVERSION in described:
                model = rebuild(model, described[CONVERSION])
            if QUANTIZATION in described:
                model = load_quantization()(model, described[QUANTIZATION])
    except Exception as error:  # the arguments come from a file, and models raise whatever they like about them
        raise ValueError(f"{folder / CONFIG_NAME} describes no model that can be built: {first_line(error)}") from error
    fit = compare(state_dict, model)
    if fit.problems or fit.other_classes:
        different = fit.problems or f"its classifier is for {fit.classes or 'no'} classes"
        raise ValueError(f"{folder / WEIGHTS_NAME} does not fit the model in {CONFIG_NAME} beside it: {different}")
    model.load_state_dict(fit.tensors)
    if "task" in described:
        model.pretrained_cfg = described.get("input", {}) | {"label_names": described.get("label_names")}
    return model


def _from_hub(spec: str) -> nn.Module:
    folder = _hub_folder(spec)
    if not {"task", CONVERSION, QUANTIZATION} & read_description(folder).keys():
        check_reachable(spec, spec.removeprefix("hf-hub:"), WEIGHTS_FILES)
        return timm.create_model(spec, pretrained=True)
    _fetch(spec, WEIGHTS_NAME)  # into the same folder
    return _from_folder(folder)


def _hub_folder(spec: str) -> Path:
    """Fetch the description of a model, and return the folder that it lies in."""
    return _fetch(spec, CONFIG_NAME).parent


def _fetch(spec: str, name: str) -> Path:
    repo, _, revision = spec.removeprefix("hf-hub:").partition("@")
    check_reachable(spec, spec.removeprefix("hf-hub:"), [name])
    return Path(hf_hub_download(repo, name, revision=revision or None))


_FILLING = {
    getattr(torch.Tensor, name)
    for name in ("uniform_", "normal_", "erfinv_", "fill_", "zero_", "clamp_", "mul_", "div_", "add_", "sub_")
}


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills in or scales meta tensors, which have no values: it takes most of the time to build them.

    All else that works in place, such as what changes a shape, happens.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        fills = func in _FILLING or getattr(func, "__module__", None) == nn.init.__name__
        if fills and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _model_for(path: Path) -> nn.Module:
    """Build the linvit model whose tensors are those of the file, and load them."""
    state_dict = read_state_dict(path)
    problems = {}
    found: dict[bool, tuple[str, Fit]] = {}  # by whether tables would have to be resized
    for name in list_models():
        with torch.device("meta"), _Unfilled():
            candidate = timm.create_model(name)
        fit = compare(state_dict, candidate)
        if not fit.problems:
            found.setdefault(fit.resized, (name, fit))
        problems[name] = len(fit.missing) + len(fit.unexpected) + len(fit.reshaped)
    if found:
        name, fit = found.get(False) or found[True]
        model = timm.create_model(name, num_classes=fit.classes, in_chans=fit.in_chans or 3)
        _load_state_dict(model, state_dict)
        return model
    nearest = min(problems, key=problems.__getitem__)
    raise ValueError(
        f"{path} fits no linvit model; the nearest, {nearest}, differs in {problems[nearest]} tensors "
        f"(for another model, load it in Python: linvit.load_checkpoint(model, {str(path)!r}))"
    )


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    input_config: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``model.safetensors`` and ``config.json``, each under a temporary name first.

    Args:
        model: A model made by ``timm.create_model``, or one of :mod:`linvit.heads`.
        folder: Where to; created if it is not there.
        classes: Names of the classes, in the order of the logits; None takes those of the model
            (:func:`class_names`).
        input_config: What the model was trained to see: ``input_size`` (C, H, W), ``mean``, ``std``,
            ``interpolation``, ``crop_pct``; None takes it from the model.
        metrics: Figures to keep with the model.
        weights: Its state dict, where the model's own is sharded.

    Returns:
        The path of the weights.

    Raises:
        ValueError: The model names no classes, and none are given.
    """
    classes, input_config = _described(model, classes, input_config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_NAME
    state_dict = model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_write(path) as new_weights, atomic_write(folder / CONFIG_NAME) as new_config:  # neither unless both
        new_weights.write_bytes(save(tensors, metadata={"format": "pt"}))  # save_file makes it unreadable for others
        if isinstance(model, DenseModel):
            described = {
                "task": model.task,
                "architecture": model.architecture,
                "label_names": list(classes),
                "input": input_config,
                "metrics": metrics,
            }
            new_config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        else:
            extra: dict[str, Any] = {"label_names": list(classes), "metrics": metrics, CONVERSION: describe(model)}
            if hasattr(model, "converted"):
                extra[QUANTIZATION] = {"img_size": list(model.img_size)}  # type: ignore[arg-type]
            extra = {name: value for name, value in extra.items() if value}
            save_config_for_hf(model, str(new_config), model_config=extra, data_config=input_config)
            described = json.loads(new_config.read_text(encoding="utf-8"))
            # It stands beside the arguments, and transformers would give it twice.
            described.get("model_args", {}).pop("num_classes", None)
            new_config.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return path


def _described(
    model: nn.Module, classes: Sequence[str] | None, input_config: dict[str, Any] | None
) -> tuple[Sequence[str], dict[str, Any]]:
    """Complete what a model is saved with by what it says of itself."""
    known = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(model, DenseModel):
        classes = known.get("label_names") if classes is None else classes
        if not classes:
            raise ValueError(f"classes: this model for {model.task} names none; give save_model(..., classes=[...])")
        if input_config is None:
            input_config = {name: value for name, value in known.items() if name != "label_names"}
        return classes, input_config
    return (
        class_names(model) if classes is None else classes,
        resolve_input_data_config(model) if input_config is None else input_config,
    )


def class_names(model: nn.Module, readable: bool = False) -> list[str]:
    """Return the names of a model's classes: its own, ImageNet's for 1,000 classes, or else their numbers.

    Args:
        model: A classifier.
        readable: As :func:`readable_names`.
    """
    num_classes = int(model.num_classes)  # type: ignore[arg-type]
    names = list(getattr(model, "pretrained_cfg", {}).get("label_names") or [])
    if not names:
        imagenet = ImageNetInfo("imagenet-1k")
        names = imagenet.label_names() if num_classes == 1000 else [str(i) for i in range(num_classes)]
    return readable_names(names) if readable else names


def readable_names(names: list[str]) -> list[str]:
    """Say "tench" instead of "n01440764" where names are ImageNet's."""
    imagenet = ImageNetInfo("imagenet-1k")
    words = dict(zip(imagenet.label_names(), imagenet.label_descriptions(), strict=True))
    return [words.get(name, name).split(",")[0] for name in names]
