"""The README and the documentation are true where a test can tell: code runs, commands parse, tables fit records."""

import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from linvit import recipes
from linvit.bench.records import Record
from linvit.cli.common import Parser
from tests.test_package import ORDER

ROOT = Path(__file__).parent.parent
WRITTEN_BY_THE_READER = {"mine.yaml", "recipe.yaml", "RECIPE"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    names: dict = {}  # a later block may go on where an earlier one ended
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    targets = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    for target in targets:
        assert (page.parent / target).exists(), target
    for recipe in re.findall(r"--config ([^\s`]+)", text):
        assert recipe in WRITTEN_BY_THE_READER or recipes.find(recipe), recipe


class Parsed(BaseException):
    """Raised where a command has understood its arguments and would begin."""


def commands(page: Path) -> list[str]:
    """Return the ``linvit`` lines of a page's blocks, continued lines joined."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("linvit ")]


COMMANDS = sorted({line for page in PAGES for line in commands(page)})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line, linvit_command, monkeypatch, tmp_path):
    understand = Parser.parse_args

    def parse(self, *args, **kwargs):
        understand(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", parse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {name: care_s0}\n")
    command, *arguments = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    if command == "train":
        if "--resume" in arguments:  # of a run that is not there
            return
        said = linvit_command("train", *arguments, "--print_config")
        assert said.code == 0, said.err
    else:
        with pytest.raises(Parsed):
            linvit_command(command, *arguments)


def benchmark_tables():
    """Import the script, which is no part of the package; it imports those beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_records_give(page):
    text = page.read_text()
    assert text == benchmark_tables().renewed(text), "run: python benchmarks/tables.py"


def test_every_table_is_in_the_documentation():
    text = "".join(page.read_text() for page in PAGES)
    assert {found[1] for found in re.finditer(r"<!-- table (\w+) -->", text)} == set(benchmark_tables().TABLES)


OWN_FORM = {"pretraining"}
"""Scripts that do not write records yet."""
MEASURED = [path for path in sorted((ROOT / "benchmarks").glob("*.json")) if path.stem not in OWN_FORM]


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_measurements_have_one_form(path):
    record = Record.read(path)
    assert record.what
    assert record.cells


def test_the_evidence_has_no_number_but_from_its_records():
    """Tables are made from the records (above); around them stand no others, and every row names its raw values."""
    page = (ROOT / "docs" / "evidence.md").read_text()
    rows = re.findall(r"^\| (?!---|claim|study)(.*) \|$", page, flags=re.MULTILINE)
    measured = [row for row in rows if row.split(" | ")[1].strip()]
    assert len(rows) >= 10
    assert all("](../" in row.split(" | ")[-1] for row in measured)
    decided = [row for row in measured if int((re.search(r"(\d+) seeds\)", row) or [0, 0])[1]) >= 3]
    assert len(decided) >= 6
    prose = re.sub(
        r"<!-- table .*?<!-- end -->|```.*?```|\]\([^)]*\)|arXiv:[\d.]+|`[^`]*`|95 %", "", page, flags=re.DOTALL
    )
    assert not re.findall(r"\d", prose)


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(explained) == sorted(extras)


def test_clients_are_those_that_were_tried():
    """Every row names a version that is pinned and a test that exists; every test of a client has its row."""
    page = (ROOT / "docs" / "clients.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| .* \| `(test_\w+)` \|$", page, flags=re.MULTILINE)
    pinned = set((ROOT / "constraints.txt").read_text().split())
    assert {f"{library}=={version}" for library, version, _ in rows} <= pinned
    code = "".join(path.read_text() for path in (ROOT / "tests" / "clients").glob("test_*.py"))
    assert {test for *_, test in rows} == set(re.findall(r"^def (test_\w+)", code, flags=re.MULTILINE)) - {
        "test_every_decoder_was_tried"
    }


def test_places_that_contributors_are_sent_to_exist():
    named = re.findall(r"`((?:linvit|tests|docs|benchmarks)/[a-z0-9_/.]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 5
    for place in named:
        assert (ROOT / place).exists(), place


def test_contributors_are_told_the_order_of_the_rooms():
    (block,) = re.findall(r"```\n(recipes <- .*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    told = [set(group.replace(",", " ").split()) for group in block.split("<-")]
    assert told == [rooms for rooms in ORDER if not rooms & {"checks", "__main__"}]
