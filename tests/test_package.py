"""The package as a whole: what importing it costs, and that its rooms import one way only."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import linvit

PACKAGE = Path(__file__).parent.parent / "linvit"
# Each room may import from those before it, and from itself. Rooms that share a line do not know each other,
# but for the tools at the end of it, which may use any room before them.
ORDER = [
    {"checks", "files", "registry"},
    {"recipes"},
    {"ops"},
    {"attention"},
    {"weights"},
    {"models"},
    {"linearization"},
    {"heads"},
    {"checkpoints"},
    {"catalogue", "hub"},
    {"data"},
    {"inference"},
    {"analysis", "deploy"},
    {"bench"},
    {"tasks"},
    {"studies"},
    {"app"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for the type checker alone."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if here == "__init__":
        return  # the front door opens to every room
    imported = set()
    for node in ast.walk(WithoutTypes().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("linvit."):
            imported.add(room_of(node.module))
        elif isinstance(node, ast.ImportFrom) and node.module == "linvit":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {room_of(f"{alias.name}.linvit") for alias in node.names if alias.name.startswith("linvit")}
    # The package itself is the last to know all rooms; only the command line may ask it for its version.
    wrong = {room for room in imported if room != here and LEVEL.get(room, LEVEL["cli"] - 1) >= LEVEL[here]}
    assert not wrong, f"{path} imports from {wrong}"
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what it is for"


def test_importing_linvit_loads_nothing_beyond_timm():
    heavy = ["lightning", "torchmetrics", "matplotlib", "onnx", "onnxruntime", "mlxtend", "rich", "jsonargparse"]
    code = f"import sys, linvit; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_linvit_s_types_are_there_for_others():
    """A type checker reads a package's annotations only where this marker lies beside them, in a wheel, too."""
    assert (PACKAGE / "py.typed").is_file()
    shipped = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in shipped["linvit"]


def test_modules_are_not_hidden_by_what_they_hold():
    """``linvit.linearize`` is the function; its module, which holds the mechanisms, has a name of its own."""
    assert callable(linvit.linearize)
    assert "focused" in linvit.linearization.MECHANISMS


def test_importing_linvit_takes_less_than_twice_the_time_of_timm():
    """In processor time, which other programs on the machine hardly change, and the least of three."""
    code = (
        "import time; begin = time.process_time(); import timm; middle = time.process_time(); import linvit;"
        "print((time.process_time() - begin) / (middle - begin))"
    )
    ratios = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert 1.0 < min(ratios) < 2.0
