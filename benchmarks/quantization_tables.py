"""The tables of 8 bits: what they cost (``quantization.py``) and gain, where time goes (``onnxruntime_int8.py``)."""

import statistics

from records_of import markdown, middle, record, spread

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


def int8_speed() -> str:
    """Return the milliseconds of each model in each runtime, float32 and int8, and their ratio."""
    titles = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "litert": "LiteRT"}
    models = list(dict.fromkeys(cell.of["model"] for cell in record("int8_speed").cells))
    rows = []
    for runtime, title in titles.items():
        cells = []
        for model in models:
            whole, small = (
                middle("int8_speed", model=model, runtime=runtime, precision=precision, fused=True, size=[224, 224])
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
    processors = {"AVX512": "AVX512-VNNI", "AVX2": "AVX2"}
    found = record("onnxruntime_int8")

    def times(**of: str) -> dict[str, float]:
        (cell,) = found.select(**of)
        return {kind: statistics.median(cell.raw["milliseconds"][kind]) for kind in kinds}

    rows = []
    for cell in found.select(precision="int8"):
        of = {"processor": cell.of["processor"], "model": cell.of["model"]}
        whole, small = times(**of, precision="float32"), times(**of, precision="int8")
        free = small | {"rounding": 0.0, "layout": min(whole["layout"], small["layout"])}
        gains = [sum(whole.values()) / sum(each.values()) for each in (small, free)]
        cells = [f"{whole[kind]:.1f} / {small[kind]:.1f}" for kind in kinds]
        total = f"{sum(whole.values()):.1f} / {sum(small.values()):.1f}"
        names = [processors[of["processor"]], f"`{of['model']}`"]
        rows.append([*names, *cells, total, *(f"{gain:.2f}" for gain in gains)])
    head = ["float32 / int8, ms", "", *kinds.values(), "together", "gain", "were both free"]
    return markdown(head, rows)


TABLES = (quantization, int8_speed, onnxruntime_int8)
