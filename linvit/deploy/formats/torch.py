"""PyTorch's own exported programs: for servers, ``torch.compile`` and AOTInductor."""

import io
from pathlib import Path

import torch

from linvit.deploy.formats._record import Format
from linvit.deploy.job import Job, Run, quiet

__all__ = ["FORMAT"]


def write(job: Job, path: Path) -> None:
    """Write the traced program; any batch size."""
    buffer = io.BytesIO()  # where torch writes to a file itself, a full disk ends the process
    with quiet():
        torch.export.save(job.program(), buffer, extra_files={f"{key}.txt": text for key, text in job.metadata.items()})
    path.write_bytes(buffer.getbuffer())


def load(path: Path, threads: int | None = None, precision: str = "float32") -> Run:
    """Open a program in PyTorch; ``threads`` are those of the whole process, and None leaves them as they are."""
    if threads is not None:
        torch.set_num_threads(threads)
    with quiet():
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: torch.Tensor) -> list[torch.Tensor]:
        y = module(images)
        return [y] if isinstance(y, torch.Tensor) else list(y)

    return run


FORMAT = Format(
    name="torch",
    title="PyTorch",
    purpose="PyTorch servers",
    suffix=".pt2",
    precisions=("float32", "float16", "bfloat16"),
    writer=write,
    loader=load,
    runtime=None,
)
