"""A format's record is what everyone reads: the files, the command line, the measurements, the documentation."""

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest

import linvit.deploy
from linvit.bench.contenders import RUNTIMES
from linvit.deploy import FORMATS, find_format
from linvit.deploy.export import BOUNDS
from linvit.deploy.formats import Format

ROOT = Path(__file__).parents[2]
GENERIC = ["linvit/deploy/*.py", "linvit/bench/*.py", "linvit/cli/*.py"]


def row(format: Format) -> str:
    """Return a format's line of the table in the documentation."""
    precisions = [
        "when loaded" if name in format.loads_as else "yes" if name in format.precisions else "" for name in BOUNDS
    ]
    files = ", ".join(f"`{suffix}`" for suffix in (format.suffix, *format.companions))
    cells = [
        f"`{format.name}`",
        format.purpose,
        files,
        "any" if format.any_batch else "1",
        "one, or any in 32s" if format.any_size else "one",
        *precisions,
    ]
    return f"| {' | '.join(cells)} |".replace("|  ", "| ")


def test_table_in_the_documentation_is_the_records():
    page = (ROOT / "docs/deploy.md").read_text()
    assert "\n".join(map(row, FORMATS.values())) + "\n" in page


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_record_is_whole(format):
    assert format.suffix.startswith(".")
    assert set(format.precisions) | set(format.loads_as) <= set(BOUNDS)
    assert set(format.converted) <= set(format.precisions)
    assert not set(format.loads_as) & set(format.precisions)
    assert (format.loader is None) == (format.describe is not None) == bool(format.runs_on)
    assert format.runtime is None or RUNTIMES[format.runtime] is format


def test_names_and_suffixes_tell_formats_apart():
    assert len({format.suffix for format in FORMATS.values()}) == len(FORMATS)
    runtimes = [format.runtime for format in FORMATS.values() if format.runtime]
    assert len(set(runtimes)) == len(runtimes)


@pytest.mark.parametrize(
    "path", [path for pattern in GENERIC for path in ROOT.glob(pattern)], ids=lambda path: path.name
)
def test_generic_code_names_no_format(path):
    words = {word for format in FORMATS.values() for word in (f'"{format.name}"', f'"{format.runtime}"')} - {'"torch"'}
    assert not [word for word in words if word in path.read_text()]


def test_what_nothing_runs_here_says_where_it_runs(tmp_path):
    with pytest.raises(ValueError, match="CoreML runs on Apple's systems alone"):
        find_format("coreml").load(tmp_path / "m.mlpackage")


def test_a_file_is_run_without_what_writes_it():
    format = replace(FORMATS["onnx"], libraries=("onnxruntime", "a_converter"), loads_with=("onnxruntime",))
    format.require(to_load=True)
    with pytest.raises(ModuleNotFoundError, match=r'a_converter: pip install "linvit\[deploy\]"'):
        format.require()
    with pytest.raises(ModuleNotFoundError, match=r"a_runtime: pip install onnxruntime$"):
        replace(format, loads_with=("a_runtime",)).require(to_load=True)


def test_no_function_hides_a_module():
    for module in pkgutil.walk_packages(linvit.deploy.__path__, "linvit.deploy."):
        parent, _, name = module.name.rpartition(".")
        found = importlib.import_module(module.name)
        assert getattr(importlib.import_module(parent), name) is found, f"{module.name} is hidden by what it is named"
