"""The tables of docs/kernels.md, made from the records beside this file.

    python benchmarks/kernel_tables.py

writes them into the page, between their markers.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "kernels.md"


def counts_table(records: list[dict[str, Any]]) -> str:
    """Return bytes of a token and operations of a byte, as Markdown."""
    lines = [
        "| operator | type | direction | floor | kernels | asked of caches | eager | eager / kernels | launches |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in records:
        tokens = r["tokens"]
        values = [r["floor"]["bytes"], r["fused"]["bytes"], r["fused"]["requested"], r["eager"]["bytes"]]
        cells = [f"{value / tokens:,.0f}" for value in values]
        ratio = r["eager"]["bytes"] / r["fused"]["bytes"]
        launches = f"{r['fused']['launches']} / {r['eager']['launches']}"
        lines.append(
            f"| {r['operator']} | {r['type']} | {r['direction']} | {' | '.join(cells)} | {ratio:.1f} | {launches} |"
        )
    return "\n".join(lines)


def binaries_table(records: list[dict[str, Any]]) -> str:
    """Return, as Markdown, the extremes over head sizes and layouts of every kernel."""
    lines = ["| operator | kernel | type | registers | shared KiB | occupancy |", "|---|---|---|---|---|---|"]
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["operator"], record["kernel"], record["type"]), []).append(record)
    for (operator, kernel, kind), group in groups.items():

        def span(name: str, scale: float = 1, form: str = ".0f", group: list = group) -> str:
            values = [record[name] * scale for record in group]
            return f"{min(values):{form}} to {max(values):{form}}"

        columns = [span("registers"), span("shared_bytes", 1 / 1024), span("occupancy", 100) + " %"]
        lines.append(f"| {operator} | `{kernel}` | {kind} | {' | '.join(columns)} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """Return the page with the tables of the records that there are."""
    for name, table in (("kernel_counts", counts_table), ("kernel_binaries", binaries_table)):
        records = json.loads((HERE / f"{name}.json").read_text())["records"]
        text = f"<!-- {name} -->\n\n{table(records)}\n\n<!-- end -->"
        page = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, text=text: text, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
