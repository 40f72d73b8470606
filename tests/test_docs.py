"""The Python in the README and the documentation runs as it stands, and what they link to exists."""

import re
from pathlib import Path

import pytest

from linvit import recipes

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
