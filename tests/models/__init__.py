"""Which models walk through which tests."""

import pytest
import timm

import linvit

MODELS = linvit.list_models()

# One small model of each family walks through what does not depend on its width and depth.
_SMALL_FIRST = sorted(MODELS, key=lambda name: ("tiny" not in name, name))
FAMILIES = sorted({timm.model_entrypoint(name).__module__: name for name in reversed(_SMALL_FIRST)}.values())

every_family = pytest.mark.parametrize("name", FAMILIES)

# The deeper and wider siblings repeat its code; they walk through with -m slow.
every_model = pytest.mark.parametrize(
    "name", [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
