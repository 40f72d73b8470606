"""What a study is: a YAML file with the settings that all arms share, what the arms change, seeds and what is equal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from linvit import recipes
from linvit.catalogue import count_macs
from linvit.checks import did_you_mean

__all__ = ["EQUAL", "Study", "changed", "read_study"]

EQUAL = {
    "updates": "every arm is trained for as many updates",
    "parameters": "the arms' parameters are within 1 % of each other",
    "macs": "the arms' multiply-accumulates for an image are within 1 % of each other",
    "time": "every arm gets as many epochs as fit into the time of the first one's, as measured before",
}
"""What can be the same for all arms."""

KEYS = {"metric", "equal", "seeds", "base", "arms", "fit", "compare", "evaluate", "bench"}
BUDGET = ("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches", "data.batch_size", "data.repeats")
SHARE = 0.01


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: What it is called.
        purpose: What it asks.
        metric: What is compared: ``val/METRIC`` of the runs, after their last epoch.
        equal: Of :data:`EQUAL`.
        seeds: Seeds of each arm.
        base: Settings of all arms, as a recipe has them.
        arms: Settings that each arm changes, by dotted name.
        fit: A setting and values of it; each arm takes the one that brings its parameters (or multiply-accumulates,
            whichever is to be equal and is farther off) nearest to the first arm's.
        compare: Pairs of arms whose difference is asked for; by default each arm and the first.
        evaluate: Options of ``linvit eval`` (``{"img-size": 160}``); each run is evaluated with each.
        bench: Arguments of ``linvit bench`` by arm, for a study that measures speed and trains nothing.
    """

    name: str
    purpose: str
    metric: str
    equal: tuple[str, ...]
    seeds: tuple[int, ...]
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    fit: dict[str, list[float]]
    compare: tuple[tuple[str, str], ...]
    evaluate: tuple[dict[str, Any], ...]
    bench: dict[str, str]

    def settings(self, arm: str) -> dict[str, Any]:
        """Return the settings of an arm, as ``linvit train`` takes them in a file.

        Raises:
            ValueError: Its size or cost cannot be made that of the first arm.
        """
        settings = changed(self.base, self.arms[arm])
        counts = [SIZES[name] for name in self.equal if name in SIZES]
        if not counts:
            return settings
        first = changed(self.base, next(iter(self.arms.values())))
        wanted = [count(first) for count in counts]

        def apart(option: dict[str, Any]) -> list[float]:
            return [abs(count(option) / target - 1) for count, target in zip(counts, wanted, strict=True)]

        options = [settings]
        for key, values in self.fit.items():
            options = [changed(settings, {key: value}) for value in values]
        best = min(options, key=lambda option: max(apart(option)))
        for count, target, share in zip(counts, wanted, apart(best), strict=True):
            if share > SHARE:
                name = next(name for name in SIZES if SIZES[name] is count)
                has = f"{arm} has {count(best):,} {name} at best"
                raise ValueError(f"{self.name}: {has}, which is not within 1 % of the first arm's {target:,}")
        return best


def read_study(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study that comes with linvit, or a file.

    Args:
        name: ``mechanism`` or ``mine.yaml``.
        overrides: Settings of all arms by dotted name, in place of what the file has.

    Raises:
        ValueError: There is no such study, or it is not as it should be; the message names the place.
    """
    known = {recipe.name for recipe in recipes.list_recipes("studies/*")}
    packaged = name if str(name).startswith("studies/") else f"studies/{name}"
    if not Path(name).is_file() and packaged not in known:
        names = [one.removeprefix("studies/") for one in sorted(known)]
        near = did_you_mean(str(name), names, f"there are {', '.join(names)}")
        raise ValueError(f"{name} is neither a file nor the name of a study{near}")
    path = Path(name) if Path(name).is_file() else recipes.find(packaged)
    try:
        given = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    return _checked(path, given, overrides or {})


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others, named with dots, in their places."""
    result = deepcopy(dict(settings))
    for key, value in changes.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def _checked(path: Path, given: Any, overrides: Mapping[str, Any]) -> Study:
    def must(holds: bool, key: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{path}: {key} must be {allowed}, not {given.get(key)!r}")

    if not isinstance(given, dict):
        raise ValueError(f"{path} holds no study: it has no settings by name")
    if unknown := sorted(map(str, given.keys() - KEYS)):
        raise ValueError(f"{path}: {unknown[0]!r} is not known{did_you_mean(unknown[0], KEYS, f'there are {KEYS}')}")
    bench = given.get("bench") or {}
    must(isinstance(bench, dict), "bench", "arguments of linvit bench by arm")
    arms = given.get("arms") or {arm: {} for arm in bench}
    arms = {str(arm): changes or {} for arm, changes in arms.items()} if isinstance(arms, dict) else {}
    dotted = all(isinstance(changes, dict) and all("." in str(key) for key in changes) for changes in arms.values())
    must(bool(arms) and dotted, "arms", "changes by arm, each with the dotted name of a setting (model.lr)")
    seeds = given.get("seeds", [0, 1, 2])
    must(isinstance(seeds, list) and all(isinstance(seed, int) for seed in seeds) and seeds != [], "seeds", "numbers")
    equal = given.get("equal", ["updates"])
    equal = [equal] if isinstance(equal, str) else equal
    must(isinstance(equal, list) and set(map(str, equal)) <= EQUAL.keys(), "equal", f"of {', '.join(EQUAL)}")
    fit = given.get("fit") or {}
    listed = isinstance(fit, dict) and len(fit) <= 1 and all(isinstance(values, list) for values in fit.values())
    must(listed, "fit", "one setting and a list of values")
    first = next(iter(arms))
    compare = given.get("compare", [[arm, first] for arm in arms if arm != first])
    must(all(isinstance(pair, list) and len(pair) == 2 for pair in compare), "compare", "pairs of arms")
    wrong = [arm for pair in compare for arm in pair if arm not in arms]
    must(not wrong, "compare", f"pairs of the arms {', '.join(arms)}")
    base = given.get("base") or {}
    must(isinstance(base, dict), "base", "settings as a recipe has them")
    if "updates" in equal:
        for arm, changes in arms.items():
            if broken := [key for key in changes if key in BUDGET]:
                raise ValueError(f"{path}: updates are to be equal, and the arm {arm!r} changes {broken[0]}")
    evaluate = given.get("evaluate") or []
    must(all(isinstance(options, dict) for options in evaluate), "evaluate", "a list of options of linvit eval")
    return Study(
        name=path.stem,
        purpose=recipes.read_heading(path.stem, path).purpose or path.stem,
        metric=str(given.get("metric", "top1")),
        equal=tuple(equal),
        seeds=tuple(seeds),
        base=changed(base, overrides),
        arms=arms,
        fit=fit,
        compare=tuple((str(one), str(other)) for one, other in compare),
        evaluate=tuple(evaluate),
        bench=bench,
    )


def _network(settings: Mapping[str, Any]) -> nn.Module:
    """Return a classifier with these settings, without its weights."""
    model = settings.get("model") or {}
    with torch.device("meta"):
        return timm.create_model(model.get("name", "care_s0"), num_classes=10, **model.get("model_args", {})).eval()


def _parameters(settings: Mapping[str, Any]) -> int:
    return sum(parameter.numel() for parameter in _network(settings).parameters())


def _macs(settings: Mapping[str, Any]) -> int:
    size = (settings.get("data") or {}).get("img_size", 224)
    return count_macs(_network(settings), (3, size, size))


SIZES: dict[str, Callable[[Mapping[str, Any]], int]] = {"parameters": _parameters, "macs": _macs}
"""What of a model can be equal, and how it is counted."""


def cells(study: Study, arms: Sequence[str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield arm and seed of each run; of speed, which has no seeds, the first.

    Seeds are the outer loop, so that a study that is stopped has whole seeds.
    """
    for seed in study.seeds[:1] if study.bench else study.seeds:
        for arm in arms or study.arms:
            yield arm, seed
