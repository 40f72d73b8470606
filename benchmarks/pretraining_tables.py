"""The tables of docs/pretraining.md, from the records of ``pretraining.py`` and of two studies."""

import statistics
from typing import Any

import evidence
from records_of import markdown, record, spread

from linvit.studies.report import difference

WAITING = "*Not measured yet.*\n"


def pretraining() -> str:
    if not evidence.measured("pretraining"):
        return WAITING
    found = record("pretraining")

    def raws(arm: str) -> dict[int, dict[str, Any]]:
        return {cell.of["seed"]: cell.raw for cell in found.select(arm=arm)}

    before, rows = raws("pretrain"), []
    for percent in ("100", "10", "1"):
        tuned, alone = raws(f"pretrained_{percent}"), raws(f"labels_{percent}")
        seeds = sorted(tuned.keys() & alone.keys())
        if not seeds:
            continue
        tops = [[arm[seed]["top1"] for seed in seeds] for arm in (tuned, alone)]
        apart = difference("pretrained", "labels", list(zip(*tops, strict=True)))
        minutes = [
            statistics.mean(before[seed]["seconds"] + tuned[seed]["seconds"] for seed in seeds) / 60,
            statistics.mean(alone[seed]["seconds"] for seed in seeds) / 60,
        ]
        epochs = statistics.mean(alone[seed]["epochs"] for seed in seeds)
        cells = [f"{spread(tops[0])}, {minutes[0]:.1f} min", f"{spread(tops[1])}, {minutes[1]:.1f} min"]
        rows.append([f"{percent} %", *cells, f"{epochs:.0f}", evidence.points(apart)])
    head = ["labels", "pretrained, then trained", "labels alone", "its epochs", "difference"]
    return markdown(head, rows)


def pretraining_features() -> str:
    if not evidence.measured("pretraining"):
        return WAITING
    found = record("pretraining")
    (teacher,) = found.select(arm="teacher")
    students = [cell.raw for cell in found.select(arm="pretrain")]
    return markdown(
        ["", "kNN, top-1", "its own answers", "explained of the teacher's variance"],
        [
            ["teacher (trained on ImageNet's labels)", spread([teacher.raw["knn"]]), spread([teacher.raw["top1"]]), ""],
            [
                f"student, no labels ({len(students)} seed{'s' if len(students) > 1 else ''})",
                spread([raw["knn"] for raw in students]),
                "",
                spread([raw["explained"] for raw in students]),
            ],
        ],
    )


def pretraining_dense() -> str:
    rows = []
    for name, title in {
        "pretrained_detection": "BCCD, AP",
        "pretrained_segmentation": "CamVid, mIoU",
    }.items():
        if evidence.measured(name):
            arms = [list(evidence.finals(name, arm).values()) for arm in ("pretrained", "from nothing")]
            apart = evidence.points(evidence.compared(name, "pretrained", "from nothing"))
            rows.append([title, *map(spread, arms), apart, evidence.raw(name)])
    if not rows:
        return WAITING
    return markdown(["", "pretrained", "from nothing", "difference", "raw values"], rows)


TABLES = (pretraining, pretraining_dense, pretraining_features)
