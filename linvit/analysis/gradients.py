"""What gradients say: which pixels a position of a map depends on, and which positions speak for a class."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from linvit.analysis.views import check_image

__all__ = ["effective_receptive_field", "grad_cam", "map_modules"]

LEAST_CELLS = 16


def map_modules(model: nn.Module) -> list[str]:
    """Return the modules whose outputs are a model's maps, from the first to the last, as timm's ``feature_info`` does.

    Raises:
        ValueError: The model does not say.
    """
    info: Any = getattr(model, "feature_info", None)
    if not info:
        raise ValueError(f"{type(model).__name__} does not say where its maps are (it has no feature_info)")
    return [entry["module"] for entry in info]


def effective_receptive_field(
    model: nn.Module, images: Tensor, module: str | None = None, at: tuple[float, float] | None = None
) -> Tensor:
    """Return how much each pixel weighs in one position of a map: the mean size of its gradient.

    The gradient of the sum over channels at that position, its size summed over the image's channels, mean over
    images, scaled to sum to 1 (Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural
    Networks", NeurIPS 2016, section 3.1).

    Args:
        model: A model with maps; it is run in evaluation mode and left as it was.
        images: Preprocessed images ``[B, C, H, W]``.
        module: The module whose output is looked at, one of :func:`map_modules`; the last by default.
        at: The pixel ``x, y`` whose position is looked at; the centre by default.

    Returns:
        ``[H, W]``, on the images' device.
    """
    height, width = images.shape[-2:]
    x, y = at if at is not None else (width / 2, height / 2)
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"pixel {x:g},{y:g} lies outside the image as the model sees it, {width}x{height} pixels")
    images = images.detach().clone().requires_grad_()
    with _evaluation(model), torch.enable_grad():
        _, found = _run(model, images, module or map_modules(model)[-1])
        row, column = int(y * found.shape[2] / height), int(x * found.shape[3] / width)
        (gradient,) = torch.autograd.grad(found[:, :, row, column].sum(), images)
    field = gradient.abs().sum(dim=1).mean(dim=0)
    return field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)


def grad_cam(model: nn.Module, image: Tensor, index: int | None = None, module: str | None = None) -> Tensor:
    """Return where a map speaks for a class: ``relu(sum_c w_c A_c)``, ``w_c`` the mean gradient of the class's logit.

    Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), equations 1 and 2.

    Args:
        model: A classifier; it is run in evaluation mode and left as it was.
        image: A preprocessed image ``[1, C, H, W]``.
        index: The class; the most likely by default.
        module: The module whose output is looked at, one of :func:`map_modules`. By default the last whose map has
            16 positions at least, of those that the logits depend on at more than the class token: of a ViT that
            classifies by its class token the last but one.

    Returns:
        ``[height, width]`` of that map.

    Raises:
        ValueError: The model has no such class, or this is not one image.
    """
    check_image(image)
    names = map_modules(model) if module is None else [module]
    if module is None and getattr(model, "global_pool", "") == "token" and len(names) > 1:
        names = names[:-1]
    cam = None
    for name in reversed(names):
        cam = _grad_cam(model, image, index, name)
        if cam.numel() >= LEAST_CELLS:
            return cam
    assert cam is not None
    return cam


def _grad_cam(model: nn.Module, image: Tensor, index: int | None, module: str) -> Tensor:
    with _evaluation(model), torch.enable_grad():
        logits, found = _run(model, image.detach().clone().requires_grad_(), module)
        if logits.ndim != 2:
            raise ValueError(f"{type(model).__name__} is no classifier, so that no class has a map")
        if index is None:
            index = int(logits[0].argmax())
        if not 0 <= index < logits.shape[1]:
            raise ValueError(f"class must be from 0 to {logits.shape[1] - 1}, got {index}")
        (gradient,) = torch.autograd.grad(logits[0, index], found)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * found.detach()).sum(dim=1)[0].relu()


def _run(model: nn.Module, images: Tensor, module: str) -> tuple[Tensor, Tensor]:
    """Return a model's output, and that of one of its modules as a map ``[B, C, h, w]``, a view that has a gradient."""
    held: list[Tensor] = []
    host: Any = model
    embed: Any = getattr(host, "patch_embed", None)

    def as_map(found: Tensor) -> Tensor:
        if found.ndim == 3:
            height, width = embed.dynamic_feat_size(images.shape[-2:])
            return found[:, getattr(host, "num_prefix_tokens", 0) :].unflatten(1, (height, width)).permute(0, 3, 1, 2)
        channels = next(e["num_chs"] for e in host.feature_info if e["module"] == module)
        return found.permute(0, 3, 1, 2) if found.shape[1] != channels and found.shape[3] == channels else found

    def keep(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
        found = as_map(output)
        held.append(found)
        if found is output:
            return output
        if found.ndim == 4 and output.ndim == 4:
            return found.permute(0, 2, 3, 1)
        prefix = output[:, : output.shape[1] - found.shape[2] * found.shape[3]]
        return torch.cat((prefix, found.flatten(2).transpose(1, 2)), dim=1)

    handle = model.get_submodule(module).register_forward_hook(keep)
    try:
        return model(images), held[0]
    finally:
        handle.remove()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, without gradients of its parameters, and leave it as it was."""
    training = model.training
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for parameter in learned:
            parameter.requires_grad_(True)
