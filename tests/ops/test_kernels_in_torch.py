"""The kernels' operators through all of torch: compilers, exports, autocast, checkpoints, several processes.

On a CPU, in Triton's interpreter. A small network of the mechanisms learns the same with kernels as with PyTorch's
operators, however it is run.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

launch = pytest.importorskip("linvit.ops.launch", reason="Triton is for Linux alone")
if not launch.INTERPRETED:
    pytest.skip("on a GPU, test_kernels_gpu.py runs them compiled", allow_module_level=True)

from linvit import ops
from linvit.attention import CareTokenMixer, FocusedLinearAttention, KeyOnlyAttention, LinearAttention

GRID = (2, 3)


class Network(nn.Module):
    """All mechanisms that have kernels, one after the other."""

    def __init__(self):
        super().__init__()
        self.focused = FocusedLinearAttention(12, GRID, 2)
        self.linear = LinearAttention(12, GRID, 1)
        self.key_only = KeyOnlyAttention(12, GRID, 1, interaction="local_global")
        self.care = CareTokenMixer(4, head_dim=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for mix in (self.focused, self.linear, self.key_only):
            x = x + mix(x)
        maps = x.transpose(1, 2).unflatten(2, GRID)
        return x + self.care(maps).flatten(2).transpose(1, 2)


def network() -> Network:
    torch.manual_seed(0)
    model = Network()
    nn.init.normal_(model.focused.positional_encoding)
    nn.init.normal_(model.focused.scale)
    return model


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 6, 12, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, call: Callable[[torch.Tensor], torch.Tensor], backend: str, x: torch.Tensor) -> dict:
    """Return the output, and the gradients of all parameters for the mean of its squares."""
    model.zero_grad()
    with ops.use_backend(backend):
        output = call(x)
        output.float().square().mean().backward()
    return {"output": output.detach()} | {name: p.grad for name, p in model.named_parameters()}


def check_same(ours: dict, theirs: dict, tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name].float() - expected.float()).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.fixture(scope="module")
def expected() -> dict:
    """What PyTorch's operators compute."""
    model = network()
    return gradients(model, model, "torch", images())


def test_eager(expected):
    model = network()
    check_same(gradients(model, model, "triton", images()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """Kernels get half precision where PyTorch's operators do, and sum in float32 as they do."""
    model = network()

    def call(x):
        with torch.autocast("cpu", dtype):
            return model(x)

    theirs = {name: x.clone() for name, x in gradients(model, call, "torch", images()).items()}
    check_same(gradients(model, call, "triton", images()), theirs, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(expected, reentrant):
    model = network()
    x = images().requires_grad_()  # what a reentrant checkpoint asks for
    check_same(gradients(model, lambda x: checkpoint(model, x, use_reentrant=reentrant), "triton", x), expected)


def test_strict_export(expected):
    with ops.use_backend("triton"), torch.no_grad():
        exported = torch.export.export(network(), (images(),), strict=True)
    kernels = {str(node.target).split(".")[1] for node in exported.graph.nodes if "linvit." in str(node.target)}
    assert kernels == {"focused_linear_attention", "linear_attention", "global_context", "local_context"}
    check_same({"output": exported.module()(images())}, {"output": expected["output"]})


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph_of_inductor(expected, dynamic):
    model = network()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    check_same(gradients(model, compiled, "triton", images()), expected)
    again = network()
    check_same(gradients(model, compiled, "triton", images(1)), gradients(again, again, "torch", images(1)))


def learn(rank: int, rendezvous: Path, kind: str, out: Path) -> None:
    """Compute the gradients of a half of the images in one of two processes, and keep what the first one has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = network()
    run: nn.Module = model
    if kind == "ddp":
        run = DistributedDataParallel(model)
    else:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if kind == "fsdp2 in bfloat16" else None
        mesh = dist.init_device_mesh("cpu", (2,))
        for part in (*model.children(), model):
            fully_shard(part, mesh=mesh, **({"mp_policy": policy} if policy else {}))
    found = gradients(model, run, "triton", images()[rank : rank + 1])
    del found["output"]
    whole = {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in found.items()}
    if rank == 0:
        torch.save(whole, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fsdp2 in bfloat16"])
def test_two_processes_compute_what_one_computes(expected, tmp_path, kind):
    out = tmp_path / "gradients.pt"
    torch.multiprocessing.spawn(learn, (tmp_path / "rendezvous", kind, out), nprocs=2)
    theirs = {name: x for name, x in expected.items() if name != "output"}
    check_same(torch.load(out, weights_only=True), theirs, 0.1 if "bfloat16" in kind else 1e-5)
