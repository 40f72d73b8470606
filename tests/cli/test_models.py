"""``linvit models``, the figures it keeps and the page that is made of them."""

import json
from pathlib import Path

import pytest
import timm

import linvit
from linvit import catalogue
from linvit.cli.models import run

MODELS = linvit.list_models()
# The smallest of each family stands for it; all are measured with -m slow.
BY_SIZE = sorted(catalogue.catalogue(), key=lambda facts: -facts.params)
FAMILIES = sorted({timm.model_entrypoint(facts.name).__module__: facts.name for facts in BY_SIZE}.values())
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def recorded(name: str) -> dict[str, int]:
    return json.loads(catalogue.MEASURED.read_text())[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_figures_are_the_models(name: str) -> None:
    assert recorded(name) == catalogue.measure(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_recorded_figure_is_the_models(name: str) -> None:
    assert recorded(name) == catalogue.measure(name)


def test_figures_are_recorded_for_the_models_there_are() -> None:
    assert list(json.loads(catalogue.MEASURED.read_text())) == MODELS
    assert set(catalogue.PUBLISHED_TOP1) <= set(MODELS)


def test_figures_agree_with_the_papers() -> None:
    papers = {"care_s0": (7.3, 0.7), "care_s1": (9.6, 1.0), "care_s2": (19.5, 1.9), "flatten_swin_tiny": (29, 4.5)}
    for name, (params, macs) in papers.items():
        (facts,) = catalogue.catalogue(name)
        assert facts.params / 1e6 == pytest.approx(params, rel=0.02)
        assert facts.macs / 1e9 == pytest.approx(macs, rel=0.04)


def test_page_is_current() -> None:
    assert PAGE.read_text() == catalogue.page(), "run: python -m linvit.catalogue"


def test_filter_takes_a_part_of_a_name_or_a_wildcard() -> None:
    assert {facts.name for facts in catalogue.catalogue("care")} == {"care_s0", "care_s1", "care_s2"}
    assert [facts.name for facts in catalogue.catalogue("*_s1")] == ["care_s1"]
    assert [facts.name for facts in catalogue.catalogue()] == MODELS


def test_nothing_found_names_what_there_is() -> None:
    with pytest.raises(ValueError, match="no model matches 'resnet'; there are care_s0, "):
        run(["resnet"])


def test_json_and_table_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["swin_base", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    large = rows["flatten_swin_base_384"]
    assert (large["img_size"], large["top1"], large["source"]) == (384, 85.0, "arXiv:2308.00442")
    assert large["weights"] == "cloud.tsinghua.edu.cn"
    assert rows["flatten_cswin_base"]["top1"] is rows["flatten_cswin_base"]["weights"] is None

    assert run(["swin_base"]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "flatten" in line}
    assert lines.keys() == rows.keys()  # no name is broken over two lines
    for cell in ("384", f"{large['params'] / 1e6:.1f}M", "85.0", "2308.00442", "yes"):
        assert f" {cell} " in lines["flatten_swin_base_384"]


def test_unmeasured_model_is_measured_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = catalogue.catalogue("care_s0")
    monkeypatch.setattr(catalogue, "_measured", dict)
    assert catalogue.catalogue("care_s0") == expected
