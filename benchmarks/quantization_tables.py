"""The table of what 8 bits cost, from the record of ``quantization.py``."""

import statistics

from records_of import markdown, record, spread

from linvit.deploy import FORMATS


def quantization() -> str:
    """Return top-1 of each model's files: rounded after training, and trained with the rounding."""
    found = record("quantization")

    def tops(**of: str) -> list[float]:
        return [cell.raw["top1"] for cell in found.select(**of)]

    rows = []
    for name in dict.fromkeys(cell.of["model"] for cell in found.cells):
        (plain,) = tops(model=name, arm="float32")
        longer = tops(model=name, arm="longer")
        for format in dict.fromkeys(cell.of["format"] for cell in found.select(model=name, arm="int8-full")):
            after = [spread(tops(model=name, arm=arm, format=format)) for arm in ("int8", "int8-full")]
            trained = tops(model=name, arm="trained", format=format)
            learned = f"{spread(trained)} ({len(trained)})"
            lost = f"{100 * (statistics.mean(trained) - plain):+.2f}"
            title = FORMATS[format].title
            on = spread(longer) if longer else "-"
            rows.append([f"`{name}`", spread([plain]), on, title, *after, learned, lost])
    floats, files = ["", "float32", "trained on, float32"], ["runtime", "int8", "int8-full"]
    return markdown([*floats, *files, "int8-full, trained (seeds)", "to float32"], rows)


TABLES = (quantization,)
