"""Reading checkpoint files: tensors out of anything that holds them, and nothing that a file says is ever run."""

import argparse
import builtins
import collections
import dataclasses
import enum
import pathlib
import pickle
import sys
import threading
import tracemalloc
import types
from typing import Any

import pytest
import torch
from torch import nn

from linvit.weights import read_state_dict

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
RAN: list[object] = []


class Settings:
    """A configuration of a library that the reader does not have; every way to build it leaves a mark."""

    def __init__(self, **values: Any):
        self.__dict__.update(values)

    def __new__(cls, *args: Any, **kwargs: Any) -> "Settings":
        RAN.append(cls)
        return object.__new__(cls)

    def __setstate__(self, state: dict) -> None:
        RAN.append(state)
        self.__dict__.update(state)


class Mapping(dict):
    """A dictionary with attributes, as many trainers have one."""


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Slotted:
    __slots__ = ("lr",)
    lr: float


class Net(nn.Module):
    def __init__(self) -> None:
        RAN.append("Net")
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.config = Settings(path=pathlib.PurePosixPath("a"))


class Hostile:
    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


FOREIGN = {
    "path": pathlib.PurePosixPath("/data/run"),
    "namespace": argparse.Namespace(lr=0.1),
    "settings": Settings(lr=0.1, inner=Settings(path=pathlib.PurePosixPath("x"))),
    "mapping": Mapping(a=Mapping(b=[1, (2,)])),
    "enum": Colour.RED,
    "default": collections.defaultdict(list, a=[1]),
    "class": Settings,
    "slotted": Slotted(0.1),
    "set": {1, 2},
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "legacy"])
def test_foreign_objects_beside_tensors_are_passed_over(tmp_path, kind, zipped):
    content = {"model": WEIGHTS, "args": FOREIGN[kind], "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    RAN.clear()
    found = read_state_dict(tmp_path / "a.pth")
    assert RAN == []
    assert found.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor)


def test_the_library_of_a_foreign_object_is_not_imported(tmp_path, monkeypatch):
    library = types.ModuleType("somebodys_library")
    config = type("Config", (), {"__module__": "somebodys_library"})
    library.Config = config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_library", library)
    torch.save({"state_dict": WEIGHTS, "cfg": config()}, tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, "somebodys_library")
    folder = tmp_path / "somebodys_library"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_state_dict(tmp_path / "a.pth").keys() == WEIGHTS.keys()
    assert not (tmp_path / "imported").exists()
    assert "somebodys_library" not in sys.modules


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_module_gives_its_tensors(tmp_path, wrapped):
    net = Net()
    torch.save({"model": net} if wrapped else net, tmp_path / "net.pt")
    RAN.clear()
    found = read_state_dict(tmp_path / "net.pt")
    assert RAN == []
    expected = net.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


def mischief(path: pathlib.Path) -> dict[str, Hostile]:
    text = f"open({str(path)!r}, 'w')"
    return {
        "exec": Hostile(exec, text),
        "eval": Hostile(eval, text),
        "open": Hostile(open, str(path), "w"),
        "system": Hostile(__import__("os").system, f"touch {path}"),
        "popen": Hostile(__import__("subprocess").Popen, ["touch", str(path)]),
        "getattr": Hostile(getattr, path, "touch"),
        "import": Hostile(__import__("importlib").import_module, "antigravity"),
        "pickle": Hostile(pickle.loads, pickle.dumps(Hostile(exec, text))),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "legacy"])
@pytest.mark.parametrize("kind", mischief(pathlib.Path("x")))
def test_hostile_files_are_refused_and_run_nothing(tmp_path, kind, zipped):
    mark = tmp_path / "mark"
    content = {"model": WEIGHTS, "args": mischief(mark)[kind]}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"besides tensors it holds .*, which are not unpickled") as error:
        read_state_dict(tmp_path / "a.pth")
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "legacy"])
def test_objects_of_the_standard_library_are_not_built_either(tmp_path, monkeypatch, zipped):
    content = {"model": WEIGHTS, "stop": Hostile(threading.Event), "lock": [Hostile(threading.Lock)]}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    built: list[object] = []
    monkeypatch.setattr(threading.Event, "__init__", built.append)
    assert read_state_dict(tmp_path / "a.pth").keys() == WEIGHTS.keys()
    assert built == []


def test_what_a_foreign_object_would_call_is_not_called(tmp_path):
    """A harmless name with hostile arguments, and a constructor of ours, stay uncalled, too."""
    called: list[object] = []
    builtins.linvit_called = called  # type: ignore[attr-defined]
    torch.save({"model": WEIGHTS, "more": Hostile(remember, "ran")}, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == WEIGHTS.keys()
    assert called == []
    del builtins.linvit_called  # type: ignore[attr-defined]


def remember(what: str) -> None:
    builtins.linvit_called.append(what)  # type: ignore[attr-defined]


def test_modules_that_hold_themselves_end(tmp_path):
    """At once: names that grow at every level would fill the memory long before there are too many."""
    net = nn.Module()
    net.__dict__["_modules"] = {"a": net, "b": net}
    torch.save(net, tmp_path / "loop.pt")
    tracemalloc.start()
    with pytest.raises(ValueError, match="its modules lie in one another more than 200 levels deep"):
        read_state_dict(tmp_path / "loop.pt")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_too_many_modules_are_refused(tmp_path):
    net = nn.Module()
    for _ in range(17):  # each level holds the one below twice
        outer = nn.Module()
        outer.__dict__["_modules"] = {"a": net, "b": net}
        net = outer
    torch.save(net, tmp_path / "many.pt")
    with pytest.raises(ValueError, match="more than 100,000 modules"):
        read_state_dict(tmp_path / "many.pt")


def test_a_plain_pickle_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Hostile(exec, "raise SystemExit")))
    with pytest.raises(ValueError, match="cannot read"):
        read_state_dict(tmp_path / "a.pth")


def test_safetensors_are_known_by_their_content(tmp_path):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    torch.save(WEIGHTS, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert torch.equal(read_state_dict(tmp_path / name)["w"], WEIGHTS["w"])
