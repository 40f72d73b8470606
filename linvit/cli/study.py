"""``linvit study STUDY``: arms x seeds on one budget, with a table, a paired test and a chart."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from linvit.cli.common import Parser, at_least, print_json, print_rows
from linvit.files import atomic_write, check_output
from linvit.studies.report import chart, comparisons, processor_time, speeds, table
from linvit.studies.run import RECORD, run_study
from linvit.studies.study import read_study


def run(argv: Sequence[str]) -> int:
    """Run the command; see ``linvit study --help``."""
    parser = Parser(
        "study",
        "Train every arm of a study with every seed on one budget, and compare them. It goes on where it was stopped, "
        "and leaves out what is done. Settings of all arms may follow as for linvit train: --data.root DIR, "
        "--trainer.max_epochs 2. `linvit recipes studies` lists the studies.",
        "linvit study mechanism --data.root imagenette128 --out studies/mechanism",
    )
    parser.add_argument("study", metavar="STUDY", help="the name of a study, or a YAML file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (studies/STUDY)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="other seeds than the study's")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="some of its arms (all)")
    parser.add_argument("--jobs", type=at_least(1), metavar="N", help="runs at once (one on each GPU, or else core)")
    parser.add_argument("--threads", type=at_least(1), default=1, metavar="N", help="threads of a run on a CPU (1)")
    parser.add_argument("--list", action="store_true", help="print the arms' settings and train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments, changes = _split(argv)
    args = parser.parse_args(arguments)
    study = read_study(args.study, changes)
    if args.seeds:
        study = replace(study, seeds=tuple(args.seeds))
    if args.list:
        settings = {arm: study.bench.get(arm) or study.settings(arm) for arm in study.arms}
        if args.json:
            print_json(settings)
        else:
            print(yaml.safe_dump(settings, sort_keys=False))
        return 0
    out = args.out or Path("studies", study.name)
    check_output(out, folder=True)
    record = run_study(study, out, args.arms, args.jobs, args.threads, lambda line: print(line, file=sys.stderr))
    found = [] if study.bench else comparisons(study, record)
    rows = speeds(record) if study.bench else table(study, record)
    if not study.bench:
        chart(study, record, out / "chart.png")
    total = processor_time([cell.raw for cell in record.cells])
    with atomic_write(out / "table.md") as temporary:
        differences = "".join(f"\n- {one.words()}" for one in found)
        temporary.write_text(f"{_markdown(rows)}{differences}\n\nProcessor time in all: {total}.\n")
    if args.json:
        apart = [
            {"one": one.one, "other": one.other, "n": one.n, "mean": one.mean, "interval": one.interval}
            for one in found
        ]
        print_json(
            {"study": study.name, "folder": str(out), "rows": rows, "differences": apart, "processor_time": total}
        )
        return 0
    print_rows(rows)
    for one in found:
        print(one.words())
    print(f"processor time in all: {total}")
    print(f"{out}: {RECORD}, table.md{'' if study.bench else ', chart.png'}, runs/")
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Part the settings, ``--a.b VALUE`` and ``--a.b=VALUE``, from the rest; values are YAML, as in a file."""
    rest: list[str] = []
    settings, words = {}, list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"--\w+\.[\w.]+", key):
            rest.append(word)
            continue
        if not equals:
            if not words:
                raise ValueError(f"{key} needs a value")
            value = words.pop(0)
        settings[key.removeprefix("--")] = yaml.safe_load(value)
    return rest, settings


def _markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
