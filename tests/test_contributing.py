"""The steps of CONTRIBUTING.md, done in a copy of the project: a model that follows them passes the tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAMILY = '''"""A family for this test: FLatten-DeiT, half as deep. Paper: https://arxiv.org/abs/2308.00442."""

from typing import Any

from timm.models import generate_default_cfgs, register_model

from linvit.models._flatten import cfg
from linvit.models.builder import build_model
from linvit.models.flatten_deit import FlattenDeit, checkpoint_filter_fn  # noqa: F401 -- the builder looks for it here

__all__ = ["sprout_tiny"]

default_cfgs = generate_default_cfgs({"sprout_tiny.untrained": cfg(first_conv="patch_embed.proj", pool_size=(14, 14))})


@register_model
def sprout_tiny(pretrained: bool = False, **kwargs: Any) -> FlattenDeit:
    """Sprout-T; no published weights."""
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (1, 2, 3, 4)), "feature_cls": "getter"}
    return build_model(
        FlattenDeit, "sprout_tiny", pretrained, feature_cfg=feature_cfg, **{"depth": 6, "embed_dim": 96} | kwargs
    )
'''


@pytest.mark.slow
def test_a_model_added_by_the_steps_passes_the_tests(tmp_path):
    for name in ("linvit", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    def python(*arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, *arguments]
        said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert said.returncode == 0, said.stdout[-4000:] + said.stderr[-2000:]

    # a model, 1
    (tmp_path / "linvit" / "models" / "sprout.py").write_text(FAMILY)
    front = tmp_path / "linvit" / "models" / "__init__.py"
    front.write_text(
        front.read_text().replace("\n__all__", "\nfrom linvit.models.sprout import sprout_tiny\n\n__all__", 1)
    )
    # 3
    tables = tmp_path / "benchmarks" / "tables.py"
    line = '    "Sprout": ("sprout_*", ""),\n    "LinGlo"'
    tables.write_text(tables.read_text().replace('    "LinGlo"', line, 1))
    python("-m", "linvit.catalogue")
    python("benchmarks/tables.py")
    # 4, and a recipe
    recipe = (tmp_path / "linvit" / "recipes" / "imagenet" / "flatten_deit_tiny.yaml").read_text()
    (tmp_path / "linvit" / "recipes" / "imagenet" / "sprout_tiny.yaml").write_text(
        re.sub("flatten_deit_tiny", "sprout_tiny", recipe)
    )
    quick = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    python(*quick, "tests/models", "tests/recipes", "tests/test_package.py", "-k", "sprout and not slow")
    python(*quick, "tests/cli/test_models.py", "-m", "not slow")
    python(*quick, "tests/test_docs.py", "-k", "tables or table")
