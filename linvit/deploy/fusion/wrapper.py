"""A module around a model that has the model's interface."""

from typing import Any

from torch import nn

__all__ = ["Wrapper"]


class Wrapper(nn.Module):
    """A module around a model: what it does not have itself, the model has.

    Args:
        model: The model, which becomes the submodule ``model``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # a copy that is not filled yet
                raise
            return getattr(self.model, name)
