"""PyTorch's own exported programs: for servers, ``torch.compile`` and AOTInductor."""

from pathlib import Path

import torch

from linvit.deploy.job import Job, Run, quiet

__all__ = ["PRECISIONS", "SUFFIX", "export", "load"]

SUFFIX = ".pt2"
PRECISIONS = ("float32", "float16", "bfloat16")


def export(job: Job, path: Path) -> None:
    """Write the traced program; any batch size."""
    with quiet():
        torch.export.save(job.program(), path, extra_files={f"{key}.txt": text for key, text in job.metadata.items()})


def load(path: Path, threads: int | None = None) -> Run:
    """Open a program in PyTorch.

    Args:
        path: The ``.pt2``.
        threads: Threads of the whole process; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with quiet():
        module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: torch.Tensor) -> list[torch.Tensor]:
        y = module(images)
        return [y] if isinstance(y, torch.Tensor) else list(y)

    return run
