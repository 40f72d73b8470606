"""Read the tensors of a checkpoint file. Nothing in it is executed.

Torch's restricted unpickler (``weights_only=True``) does all the reading: it imports nothing that a file names, and
builds tensors and plain containers alone. Objects of other classes, such as settings that a trainer kept beside the
weights or a whole pickled module, are not built either: an empty container takes the place of each, which at most keeps
the values that the file gives it. So a module's tensors can be read without its class.
"""

import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict

from linvit.checks import first_line, some

__all__ = ["SUFFIXES", "read_state_dict"]

SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights before raw ones

# Files that name these want something run. Nothing would be, but they are no weights to trust.
_ACTIVE = {"os", "posix", "nt", "sys", "subprocess", "pty", "shutil", "socket", "importlib", "runpy", "ctypes"}
_ACTIVE |= {"pickle", "_pickle", "marshal", "webbrowser", "builtins", "io", "_io", "commands"}
_PLAIN = {"set", "frozenset", "slice", "complex", "bytearray", "object", "range", "list", "dict", "tuple", "type"}
_PLAIN |= {"int", "float", "str", "bool", "bytes"}  # of builtins

_MOST_MODULES = 100_000
_MOST_LEVELS = 200  # a module that holds itself has names without end
_MOST_BYTES = 2**28  # of what describes the tensors, which are kept apart from it


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint without executing anything that is in it.

    Args:
        path: A safetensors file, or a torch file that holds a state dict: plain, wrapped under ``model``,
            ``state_dict``, ``model_ema``, ``state_dict_ema`` (the average is preferred) or another name, with the
            prefixes that DistributedDataParallel, ``torch.compile`` and Lightning put before names; or a whole module,
            whose class need not be there.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a checkpoint, is damaged, holds no tensors, or names what runs code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        tensors = _tensors_of(_load(path))
    except _Refused as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except Exception as error:  # a damaged file makes the readers fail in many ways
        raise ValueError(f"cannot read {path}: {_why_unreadable(path, error)}") from error
    if not tensors:
        raise ValueError(f"cannot read {path}: it holds no state dict (looked for a plain one and for {_WRAPPERS})")
    tensors = clean_state_dict(tensors)
    if all(name.startswith("model.") for name in tensors):
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors


class _Refused(Exception):
    """A file names what runs code, or more than can be passed over."""


class _Mapping:
    """Stands for a foreign class: what is built in its place is an empty dictionary, which torch fills and no more."""

    def __new__(cls, *args: object, **kwargs: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class _State:
    """Stands for a foreign class whose state is no dictionary: it is dropped."""

    def __new__(cls, *args: object, **kwargs: object) -> "_State":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update((key, value) for key, value in dict.items(state) if isinstance(key, str))


def _load(path: Path) -> object:
    """Unpickle tensors and containers, with a placeholder for every other class that the file names."""
    foreign = _foreign_globals(path)
    active = sorted({name.replace("__builtin__.", "builtins.", 1) for name in foreign if _runs_code(name)})
    if active:
        raise _Refused(f"besides tensors it holds {some(active)}, which {_ADVICE}")
    failed: Exception | None = None
    for placeholder in (_Mapping, _State):
        # A file, not its path: torch would go by the suffix.
        with torch.serialization.safe_globals([(placeholder, name) for name in foreign]), path.open("rb") as file:
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # what stands in the place of a class can be filled in a way that does not fit
                failed = failed or error
        if not foreign:
            break
    assert failed is not None
    foreign = {name for name in foreign if not name.startswith(("torch.", "collections."))}
    if foreign and isinstance(failed, pickle.UnpicklingError):
        raise _Refused(f"besides tensors it holds {some(sorted(foreign))}, which {_ADVICE}") from failed
    raise failed


_ADVICE = "are not unpickled; save its state dict alone, as .safetensors"


def _runs_code(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    root = module.split(".")[0].replace("__builtin__", "builtins")
    return root in _ACTIVE and not (root == "builtins" and attribute in _PLAIN)


def _foreign_globals(path: Path) -> set[str]:
    """Return the names of all classes and functions in a torch file: the instructions are listed, none is followed.

    Those that torch knows to be harmless are among them: it takes no placeholder for them.
    """
    found: set[str] = set()
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.filename.endswith("/data.pkl"):
                        if entry.file_size > _MOST_BYTES:
                            raise _Refused(f"what describes its tensors takes {entry.file_size:,} bytes")
                        with archive.open(entry) as member:
                            found.update(_globals(member))
        else:
            file.seek(0)
            if file.read(1) != b"\x80":
                return found  # no pickle: torch says so
            file.seek(0)
            for _ in range(5):  # as torch saved before version 1.6: number, version, system, object, keys
                found.update(_globals(file))
    return found


def _globals(stream: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".", 1)
            yield name
            yield name.replace("__builtin__.", "builtins.", 1).replace("copy_reg.", "copyreg.", 1)  # as Python 3 says


def _tensors_of(content: object) -> dict[str, torch.Tensor]:
    """Find the state dict in what a file held: the average of weights first, else the largest one."""
    if not isinstance(content, dict | _State):
        return {}
    if isinstance(content, dict):
        for key in _WRAPPERS:
            found = _state_dict(dict.get(content, key))
            if found:
                return found
    found = _state_dict(content)
    if not found and isinstance(content, dict):
        parts = [_state_dict(value) for key, value in dict.items(content) if "optim" not in str(key)]
        found = max(parts, key=len, default={})
    return found


def _state_dict(content: object) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, or of a module that was pickled whole."""
    if isinstance(_held(content, "_modules"), dict):
        return dict(_of_module(content))
    if not isinstance(content, dict):
        return {}
    return {k: v for k, v in dict.items(content) if isinstance(k, str) and isinstance(v, torch.Tensor)}


def _of_module(module: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Walk a module's parameters, buffers and children as they lie in its state."""
    waiting: list[tuple[str, object]] = [("", module)]
    for _ in range(_MOST_MODULES):
        if not waiting:
            return
        prefix, module = waiting.pop()
        if prefix.count(".") > _MOST_LEVELS:
            raise _Refused(f"its modules lie in one another more than {_MOST_LEVELS} levels deep")
        passing = _held(module, "_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _items(_held(module, kind)):
                if isinstance(tensor, torch.Tensor) and not (isinstance(passing, set) and name in passing):
                    yield f"{prefix}{name}", tensor
        waiting += [(f"{prefix}{name}.", child) for name, child in _items(_held(module, "_modules"))]
    raise _Refused(f"it has more than {_MOST_MODULES:,} modules")


def _held(module: object, name: str) -> object:
    attributes = getattr(module, "__dict__", None)
    return dict.get(attributes, name) if isinstance(attributes, dict) else None


def _items(held: object) -> list[tuple[object, object]]:
    return list(dict.items(held)) if isinstance(held, dict) else []


def _is_safetensors(path: Path) -> bool:
    """Tell by the content: the length of a JSON header in eight bytes, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" and head[:2] != b"PK" and head[:1] != b"\x80":
        return True
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(300)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "not a checkpoint but a web page"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 or byte > 127 for byte in head):
        start = head[:40].decode("utf-8", errors="replace").split("\n")[0]
        return f"not a checkpoint but text: {start!r}"
    if isinstance(error, pickle.UnpicklingError):  # torch's own words are advice to unpickle the file after all
        return "not a checkpoint, or damaged"
    return f"not a checkpoint, or damaged ({first_line(error)})"
