"""Run the test file of a release of timm on linvit's models, and print what passed, failed and was skipped.

    python -m tests.timm_own                               # all models, the installed release
    python -m tests.timm_own 'flatten_swin*' care_s0       # some of them
    python -m tests.timm_own --archive timm-1.0.31.tar.gz  # a source distribution that is here already

The source distribution is fetched by pip into a temporary folder; of it, the tests alone are unpacked, so that they
meet the installed timm. Results are kept model by model in ``--out``; a run that was stopped goes on there.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import timm

import linvit
from linvit.bench.records import Record

ROOT = Path(__file__).parent.parent.parent


def fetch(version: str, folder: Path) -> Path:
    """Download the source distribution of timm and return its path."""
    command = [sys.executable, "-m", "pip", "download", f"timm=={version}", "--no-binary", "timm", "--no-deps"]
    subprocess.run([*command, "--quiet", "--dest", str(folder)], check=True)
    return next(folder.glob("timm-*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, and the settings of pytest beside them; return the path of the tests of models."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = member.name.partition("/")[2]
            if inside.startswith("tests/") or inside == "pyproject.toml":
                member.name = inside.replace("tests/", "timm_tests/", 1)  # there is a package called tests already
                tar.extract(member, folder, filter="data")
    return folder / "timm_tests" / "test_models.py"


def run(tests: Path, models: list[str], log: Path) -> list[dict[str, str]]:
    """Run the tests on some models in a process of its own; return model, test, outcome and reason of each."""
    results = tests.parent / "results.jsonl"
    results.unlink(missing_ok=True)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "LINVIT_TIMM_MODELS": ",".join(models),
        "LINVIT_TIMM_RESULTS": str(results),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.timm_own.plugin", "-p", "no:cacheprovider"]
    command += ["--timeout=3600", f"--rootdir={tests.parent.parent}", str(tests)]
    with log.open("ab") as file:
        subprocess.run(command, cwd=tests.parent.parent, env=env, stdout=file, stderr=file, check=False)
    if not results.is_file():
        raise SystemExit(f"no test ran on {', '.join(models)}: see {log}")
    return [json.loads(line) for line in results.read_text().splitlines()]


def table(record: Record) -> str:
    """Return the counts by test and the reason of everything that did not pass."""
    counts: dict[str, Counter[str]] = {}
    reasons: Counter[tuple[str, str, str]] = Counter()
    for cell in record.cells:
        counts.setdefault(cell.of["test"], Counter())[cell.raw["outcome"]] += 1
        if cell.raw["outcome"] != "passed":
            reasons[cell.of["test"], cell.raw["outcome"], cell.raw["reason"]] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    lines = [f"{'test':45}{'passed':>8}{'failed':>8}{'skipped':>8}"]
    for test, count in [*sorted(counts.items()), ("all", total)]:
        lines.append(f"{test:45}{count['passed']:>8}{count['failed']:>8}{count['skipped']:>8}")
    lines += [f"{n} {outcome} in {test}: {reason}" for (test, outcome, reason), n in sorted(reasons.items())]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.timm_own", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names or wildcards (default: all)")
    parser.add_argument("--version", default=timm.__version__, help="release of timm (default: the installed one)")
    parser.add_argument("--archive", type=Path, help="a source distribution that is here already")
    parser.add_argument("--out", type=Path, default=Path("timm_tests.json"), help="the record (default: %(default)s)")
    args = parser.parse_args()
    known = linvit.list_models()
    models = [name for name in known if not args.models or any(fnmatch.fnmatch(name, m) for m in args.models)]
    if not models:
        parser.error(f"no model is called {', '.join(args.models)}")
    record = Record.resume(args.out, "timm's own tests of models", {"timm": args.version, "weights": "drawn"})
    with TemporaryDirectory() as folder:
        tests = unpack(args.archive or fetch(args.version, Path(folder)), Path(folder))
        for i, model in enumerate(models):
            if any(record.select(model=model)):
                continue
            print(f"{i + 1} of {len(models)}: {model}", file=sys.stderr, flush=True)
            for found in run(tests, [model], args.out.with_suffix(".log")):
                record.add(
                    {"model": model, "test": found["test"]}, {"outcome": found["outcome"], "reason": found["reason"]}
                )
    print(table(record))
    return int(any(cell.raw["outcome"] == "failed" for cell in record.cells))


if __name__ == "__main__":
    sys.exit(main())
