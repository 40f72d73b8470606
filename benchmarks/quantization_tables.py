"""The tables of 8 bits: what they cost (``quantization.py``) and gain, where time goes (``onnxruntime_int8.py``)."""

import statistics

from records_of import RUNTIMES, markdown, middle, record, spread

from linvit.deploy import FORMATS


def quantization() -> str:
    """Return top-1 of the files of each model, rounded after training (and how many agree) and trained in 8 bits."""
    found = record("quantization")

    def tops(**of: str) -> list[float]:
        return [cell.raw["top1"] for cell in found.select(**of)]

    rows = []
    for name in dict.fromkeys(cell.of["model"] for cell in found.cells):
        (plain,) = tops(model=name, arm="float32")
        longer = tops(model=name, arm="longer")
        for format in dict.fromkeys(cell.of["format"] for cell in found.select(model=name, arm="int8-full")):
            after = []
            for arm in ("int8", "int8-full"):
                (file,) = found.select(model=name, arm=arm, format=format)
                after.append(f"{spread([file.raw['top1']])} ({file.raw['agreement']:.0%})")
            trained = tops(model=name, arm="trained", format=format)
            learned = f"{spread(trained)} ({len(trained)})"
            lost = f"{100 * (statistics.mean(trained) - plain):+.2f}"
            title = FORMATS[format].title
            on = spread(longer) if longer else "-"
            rows.append([f"`{name}`", spread([plain]), on, title, *after, learned, lost])
    floats, files = ["", "float32", "trained on, float32"], ["runtime", "int8", "int8-full"]
    return markdown([*floats, *files, "int8-full, trained (seeds)", "to float32"], rows)


def int8_speed() -> str:
    """Return the milliseconds of each model in each runtime, float32 and int8, and their ratio."""
    models = list(dict.fromkeys(cell.of["model"] for cell in record("int8_speed").cells))
    rows = []
    for runtime, title in RUNTIMES.items():
        cells = []
        for model in models:
            whole, small = (
                middle("int8_speed", model=model, runtime=runtime, precision=precision)
                for precision in ("float32", "int8")
            )
            cells.append(f"{whole * 1e3:.1f} / {small * 1e3:.1f} = **{whole / small:.2f}**")
        rows.append([title, *cells])
    return markdown(["ms", *(f"`{model}`" for model in models)], rows)


def onnxruntime_int8() -> str:
    """Return the milliseconds of each kind of operator, the gain of int8, and what it is without int8's own costs."""
    kinds = {
        "dense": "convolutions, linear layers",
        "rounding": "to 8 bits and back",
        "layout": "between memory layouts",
        "gelu": "GELU",
        "rest": "all else",
    }
    found = record("onnxruntime_int8")

    def times(**of: str) -> dict[str, float]:
        (cell,) = found.select(**of)
        return {kind: statistics.median(cell.raw["milliseconds"][kind]) for kind in kinds}

    rows = []
    for cell in found.select(precision="int8"):
        model = cell.of["model"]
        whole, small = times(model=model, precision="float32"), times(model=model, precision="int8")
        free = small | {"rounding": 0.0, "layout": min(whole["layout"], small["layout"])}
        together, best = (sum(each.values()) for each in (small, free))
        pairs = [(whole[kind], small[kind]) for kind in kinds] + [(sum(whole.values()), together)]
        gains = [sum(whole.values()) / each for each in (together, best)]
        rows.append([f"`{model}`", *(f"{a:.1f} / {b:.1f}" for a, b in pairs), *(f"{gain:.2f}" for gain in gains)])
    head = ["float32 / int8, ms", *kinds.values(), "together"]
    return markdown([*head, "gain", "gain without rounding, in float32's layouts"], rows)


TABLES = (quantization, int8_speed, onnxruntime_int8)
