"""What is known of a format: one record, which the command line, the measurements and the documentation read."""

import contextlib
import dataclasses
import importlib
import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Unpack

from torch import Tensor, nn

from linvit.deploy.job import INTEGER, Job, JobOptions, Run, make_job
from linvit.deploy.quantization.model import QuantizedModel
from linvit.files import saving

__all__ = ["Format", "FormatError", "Load", "metadata_beside"]


class FormatError(ValueError):
    """A converter or a runtime failed; one line says in what."""


def metadata_beside(path: Path) -> dict[str, str]:
    """Read the metadata of a file from the ``.json`` beside it."""
    return json.loads(path.with_suffix(".json").read_text())


class Load(Protocol):
    """Open a file in its runtime on the CPU."""

    def __call__(self, path: Path, threads: int | None = None, precision: str = "float32") -> Run:
        """Return the loaded file.

        Args:
            path: The file.
            threads: Threads to compute with; None takes the runtime's choice.
            precision: What to compute in, for runtimes that choose it when they load (:attr:`Format.loads_as`).
        """


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format to export to, and the runtime that runs its files.

    Attributes:
        name: As ``--to`` takes it.
        title: As its makers write it.
        purpose: Where its files are at home.
        suffix: Of the file that is loaded.
        companions: Suffixes of files that are written beside it.
        precisions: Of the files.
        converted: Those of them which the converter makes of a model in float32; in 8 bits, with ranges of its own.
        loads_as: Precisions in which a runtime can compute a float32 file, chosen when it is loaded.
        any_batch: Whether a file takes batches of any size; otherwise one image.
        any_size: Whether a file can take images of any height and width.
        any_threads: Whether a runtime can be told how many threads to use.
        webgpu: Whether a file can compute on the GPU of a browser.
        separate_groups: Whether CARE's channel groups stay separate tensors (:mod:`linvit.deploy.fusion.separate`).
        libraries: What is imported to write its files, and to run them.
        loads_with: What is imported to run them, where that is less.
        packages: Distributions whose versions a measurement names.
        install: What to do where one of them is missing.
        writer: Writes a job to a file of the suffix; see :meth:`write`.
        loader: Opens a file; None where nothing runs it here; see :meth:`load`.
        metadata: Reads back the texts that describe a file's model (:attr:`linvit.deploy.job.Job.metadata`); None where
            files are not taken for models again.
        describe: Reads a file back and says in words what is in it, where nothing runs it here.
        runs_on: Where it does run, then.
        runtime: Name of the runtime in measurements; None where it cannot be timed here.
    """

    name: str
    title: str
    purpose: str
    suffix: str
    companions: tuple[str, ...] = ()
    precisions: tuple[str, ...]
    converted: tuple[str, ...] = ()
    loads_as: tuple[str, ...] = ()
    any_batch: bool = True
    any_size: bool = True
    any_threads: bool = True
    webgpu: bool = False
    separate_groups: bool = False
    libraries: tuple[str, ...] = ()
    loads_with: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    install: str = 'pip install "linvit[deploy]"'
    writer: Callable[[Job, Path], None]
    loader: Load | None
    metadata: Callable[[Path], dict[str, str]] | None = None
    describe: Callable[[Path], str] | None = None
    runs_on: str = ""
    runtime: str | None

    def require(self, to_load: bool = False) -> None:
        """Import its libraries.

        Args:
            to_load: Only what running a file takes.

        Raises:
            ModuleNotFoundError: One is missing; the message says what to do.
        """
        less = to_load and self.loads_with
        for library in self.loads_with if less else self.libraries:
            try:
                importlib.import_module(library)
            except ModuleNotFoundError as error:
                advice = f"pip install {' '.join(self.packages)}" if less else self.install
                line = f"{self.title} needs {error.name}: {advice}"
                raise ModuleNotFoundError(line, name=error.name) from error

    def job(self, model: nn.Module, precision: str = "float32", **options: Unpack[JobOptions]) -> Job:
        """Make a model ready for this format.

        Args:
            model: As for :func:`linvit.deploy.job.make_job`, like the options.
            precision: One of :attr:`precisions` or :attr:`loads_as`.

        Raises:
            ValueError: The format has no such precision, cannot take any height and width, knows no WebGPU, or finds
                ranges itself and has nothing to find them with.
        """
        allowed = self.precisions + self.loads_as
        if precision not in allowed:
            raise ValueError(f"precision for {self.name} must be one of {', '.join(allowed)}, got {precision!r}")
        if options.get("dynamic_size") and not self.any_size:
            raise ValueError(f"{self.title} plans its memory for one size: leave out --dynamic-size")
        if options.get("webgpu") and not self.webgpu:
            raise ValueError(f"{self.title} knows no WebGPU: leave out --webgpu")
        traced = "float32" if precision in self.converted + self.loads_as else precision
        if traced != precision and precision in INTEGER:
            if options.get("calibration") is None:
                raise ValueError(f"{self.title} finds ranges anew, of trained models, too: give --calibration IMAGE...")
            if isinstance(model, QuantizedModel):
                options["img_size"] = options.get("img_size") or model.img_size
                model = model.in_float()
        job = make_job(model, precision=traced, separate=self.separate_groups, **options)
        return dataclasses.replace(job, precision=precision, metadata=job.metadata | {"precision": precision})

    def write(self, job: Job, path: Path) -> None:
        """Write a job to a file.

        Raises:
            ModuleNotFoundError: A library is missing.
            FormatError: The converter failed.
            OSError: The file cannot be written.
        """
        self.require()
        with self._in_one_line("cannot take this model"), saving(path):
            self.writer(job, path)

    def load(self, path: Path, threads: int | None = None, precision: str = "float32") -> Run:
        """Open a file on the CPU.

        Args:
            path: The file.
            threads: Threads to compute with; None takes the runtime's choice.
            precision: What to compute in, where the runtime chooses it when it loads (:attr:`loads_as`).

        Raises:
            ModuleNotFoundError: A library is missing.
            FormatError: The runtime failed, which running the file raises, too.
            ValueError: Nothing runs the format here.
        """
        if self.loader is None:
            raise ValueError(f"{self.title} runs on {self.runs_on} alone")
        self.require(to_load=True)
        with self._in_one_line(f"cannot load {path.name}"):
            loaded = self.loader(path, threads, precision)

        def run(images: Tensor) -> list[Tensor]:
            with self._in_one_line(f"cannot run {path.name} on images of {'x'.join(map(str, images.shape))}"):
                return loaded(images)

        return run

    @contextlib.contextmanager
    def _in_one_line(self, what: str) -> Iterator[None]:
        """Make one line of whatever a library raises."""
        try:
            yield
        except (ValueError, ModuleNotFoundError, MemoryError, OSError):
            raise
        except Exception as error:
            said = textwrap.shorten(f"{type(error).__name__}: {error}", width=400, placeholder=" ...")
            raise FormatError(f"{self.title} {what}: {said}") from error
