"""FSDP2, Fabric, torchao, and what explains predictions: Grad-CAM and captum."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tests.models.test_transforms import SMALL, tiny

pytestmark = pytest.mark.slow


def _shard_and_step(rank: int, name: str, rendezvous: str, out: str) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = tiny(name, 64, torch.float64)
    for child in model.modules():
        if type(child).__name__ == "Block" or type(child).__name__.endswith("Block"):
            fully_shard(child)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loss = model(x[2 * rank : 2 * rank + 2]).square().mean()
    loss.backward()
    optimizer.step()
    whole = {}
    for key, tensor in model.state_dict().items():
        whole[key] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if rank == 0:
        torch.save(whole, out)
    dist.destroy_process_group()


@pytest.mark.parametrize("family", SMALL)
def test_fsdp2_on_two_processes_steps_as_one(family, tmp_path):
    mp.spawn(_shard_and_step, (family, str(tmp_path / "meet"), str(tmp_path / "out.pt")), nprocs=2)
    torch.manual_seed(0)
    model = tiny(family, 64, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward()
    optimizer.step()
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-12, msg=key)


def test_fabric(small):
    fabric_module = pytest.importorskip("lightning.fabric", reason="needs linvit[train]")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = small(num_classes=3)
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    loss = model(torch.randn(4, 3, 64, 64)).square().mean()
    fabric.backward(loss)
    optimizer.step()
    assert loss.isfinite()


def test_torchao_int8_weights(name, small):
    """Where key-only attention multiplies its weights themselves (keys are never computed), they stay as they are."""
    quantization = pytest.importorskip("torchao.quantization", reason="needs linvit[deploy]")
    model = small(num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    quantized = copy.deepcopy(model)
    kept = ".qkv" if "linglo" in name else "nothing"
    quantization.quantize_(
        quantized,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda module, path: isinstance(module, nn.Linear) and not path.endswith(kept),
    )
    changed = [m for m in quantized.modules() if isinstance(m, nn.Linear) and type(m.weight) is not nn.Parameter]
    with torch.no_grad():
        expected, found = model(x), quantized(x)
    assert changed
    assert (found - expected).abs().max() < 0.1 * expected.abs().max() + 1e-3


def tokens_to_map(output: torch.Tensor) -> torch.Tensor:
    """Bring what the layers give to ``[B, C, H, W]``: channels last for FLatten's, tokens of a square for DeiT's."""
    if output.ndim == 3:
        side = int(output.shape[1] ** 0.5)
        output = output.reshape(output.shape[0], side, side, -1)
    return output.permute(0, 3, 1, 2)


def last_layer(name: str, model: nn.Module) -> tuple[nn.Module, bool]:
    """Return the layer to explain, and whether its output has channels last."""
    if "deit" in name:
        return model.blocks[-1], True
    if "_swin" in name:
        return model.layers[-1], True
    return model.stages[-1], False


@pytest.mark.parametrize("method", ["GradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenCAM"])
def test_grad_cam(name, small, method):
    cam_module = pytest.importorskip("pytorch_grad_cam", reason="needs linvit[clients]")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = tiny(name, 128)
    layer, channels_last = last_layer(name, model)
    transform = tokens_to_map if channels_last else None
    x = torch.randn(2, 3, 128, 128)
    with getattr(cam_module, method)(model=model, target_layers=[layer], reshape_transform=transform) as cam:
        maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(0), ClassifierOutputTarget(1)])
    assert maps.shape == (2, 128, 128)
    assert maps.min() >= 0
    assert maps.max() <= 1.0 + 1e-5
    assert maps.std() > 0


def test_captum(name):
    attr = pytest.importorskip("captum.attr", reason="needs linvit[clients]")
    model = tiny(name, 64)
    x, baseline = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    found, delta = attr.IntegratedGradients(model).attribute(
        x, baseline, target=1, n_steps=200, internal_batch_size=16, return_convergence_delta=True
    )
    with torch.no_grad():
        difference = (model(x) - model(baseline))[0, 1].abs()
    assert found.shape == x.shape
    assert delta.abs().item() < 0.1 * difference.item() + 1e-3
    saliency = attr.Saliency(model).attribute(x, target=0)
    assert saliency.isfinite().all()
    assert saliency.max() > 0
