"""The tables of the documentation, made from the records beside this file (and the catalogue of models).

    python benchmarks/tables.py

writes each between its markers, ``<!-- table NAME -->`` and ``<!-- end -->``, in the README and in docs/. A test holds
what stands there equal to what the records give.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import evidence
import pretraining_tables
import quantization_tables
from records_of import HERE, RUNTIMES, markdown, middle, record, spread

from linvit.catalogue import PUBLISHED_TOP1, catalogue
from linvit.files import atomic_write

PAGES = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MIB = 2**20


def values(name: str, key: str) -> list[Any]:
    """Return what the cells of a record have under a key, each once, in order."""
    return list(dict.fromkeys(cell.of[key] for cell in record(name).cells))


def care_speed() -> str:
    rows = []
    for phase in values("care_speed", "phase"):
        for batch in values("care_speed", "batch"):
            for precision in values("care_speed", "precision"):
                cell = {"phase": phase, "batch": batch, "precision": precision}
                base = middle("care_speed", **cell, contender="transcription")
                ratios = [middle("care_speed", **cell, contender=one) / base for one in ("contiguous", "channels_last")]
                rows.append([phase, batch, precision, f"{base * 1e3:.0f} ms", *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(["", "batch", "precision", "transcription", "contiguous", "channels-last"], rows)


def attention_focus() -> str:
    def cell(rows: list[list[float]], unit: str, scale: float) -> str:
        images = [statistics.mean(layers) * scale for layers in rows]
        return f"{statistics.mean(images):.1f} ± {statistics.stdev(images):.1f} {unit}"

    rows = []
    for name in values("attention_focus", "attention"):
        raw = record("attention_focus").get(attention=name) or {}
        shares = [cell(raw[key], "%", 100) for key in ("entropy", "rank", "effective", "rank_mixed", "effective_mixed")]
        rows.append([name, shares[0], cell(raw["distance"], "px", 1), *shares[1:]])
    head = ["attention", "entropy, of the highest", "distance", "rank", "effective rank"]
    return markdown([*head, "rank with local part", "effective, with it"], rows)


def runtimes() -> str:
    """Return the milliseconds of each model in each runtime."""
    titles = {"eager": "PyTorch", "compiled": "compiled", **RUNTIMES}
    rows = []
    for model in values("runtimes", "model"):
        cells = {cell.of["runtime"]: cell.raw for cell in record("runtimes").select(model=model)}
        published = {**PUBLISHED_TOP1, **PEERS_TOP1}.get(model, "")
        times = [f"{statistics.median(cells[name]['seconds']) * 1e3:.1f}" for name in titles]
        rows.append([f"`{model}`", published, f"{cells['eager']['macs'] / 1e9:.2f}", *times])
    return markdown(["ms", "published top-1", "GMACs", *titles.values()], rows)


def export_formats() -> str:
    titles = {"onnx": "ONNX", "openvino": "OpenVINO", "executorch": "ExecuTorch", "coreml": "CoreML", "torch": "torch"}
    titles |= {"litert": "LiteRT", "web": "the page"}

    def words(raw: dict[str, Any] | None) -> str:
        if raw is None:
            return ""
        if "error" in raw:
            return f"refused: {raw['error'].partition(':')[0]}"
        if "structure" in raw:
            return f"{raw['structure'].partition(',')[0]}, not run; {raw['megabytes']:.0f} MB"
        errors = f"{raw['max_error']:.0e} / {raw['mean_error']:.0e}"
        return f"{errors}, {raw['top1_agreement']:.0%}; {raw['megabytes']:.0f} MB"

    columns = ["float32", "float16", "bfloat16", "int8"]
    rows = []
    for model in values("export_table", "model"):
        for name, title in titles.items():
            cells = [record("export_table").get(model=model, format=name, precision=column) for column in columns]
            if any(cells):
                rows.append([model, title, *map(words, cells)])
    return markdown(["model", "format", *columns], rows)


CARE = ("care_s0", "care_s1", "care_s2")


def care_steps() -> str:
    steps = {
        "converted": "the published graph as OpenVINO's own calls convert it, no size fixed",
        "published": "the published graph, compiled for the size of the images (linvit does)",
        "fused": "`fuse`: BatchNorms, layer scales, one classifier, attention without transposes",
        "separate": "channel groups as separate tensors where they attend (OpenVINO's export)",
        "no GELU": "for comparison: no GELU at all, which is another function",
    }

    def gain(runtime: str, step: str, model: str) -> float:
        of = {"model": model, "runtime": runtime}
        return middle("care_export_speed", **of, step="published") / middle("care_export_speed", **of, step=step)

    def onnx(step: str, model: str) -> float:
        fused = {"published": False, "fused": True}[step]
        of = {"model": model, "runtime": "onnxruntime", "precision": "float32", "size": [224, 224]}
        plain = middle("care_peers_onnxruntime", **of, fused=False)
        return plain / middle("care_peers_onnxruntime", **of, fused=fused)

    rows = []
    for step, title in steps.items():
        gains = [
            ", ".join(f"{gain(runtime, step, model):.2f}" for model in CARE)
            for runtime in ("openvino", "openvino bf16")
        ]
        known = step in ("published", "fused")
        gains.append(", ".join(f"{onnx(step, model):.2f}" for model in CARE) if known else "")
        rows.append([title, *gains])
    return markdown(["step", "OpenVINO float32: S0, S1, S2", "OpenVINO bfloat16", "ONNX Runtime float32"], rows)


PEERS_TOP1 = {
    "mobilevitv2_100": 78.1,
    "swiftformer_s": 78.5,
    "fastvit_t12": 79.1,
    "efficientvit_b1": 79.4,
    "mobilenetv4_conv_medium": 79.9,
    "repvit_m1_0": 80.0,
    "cpubone_nano": 72.8,
    "cpubone_b0_bfrobust": 77.4,
    "cpubone_b1_bfrobust": 78.5,
    "cpubone_b2_bfrobust": 81.2,
}
"""ImageNet-1K top-1 in per cent, as the papers state it; CPUBone's as the card of its weights does."""


def care_peers() -> str:
    rows = []
    for model in [name for name in (*CARE, *PEERS_TOP1) if name in values("care_peers_openvino", "model")]:
        times = []
        for runtime, precision in (("openvino", "float32"), ("openvino", "bfloat16"), ("onnxruntime", "float32")):
            of = {"model": model, "runtime": runtime, "precision": precision, "fused": True, "size": [224, 224]}
            times.append(f"{middle(f'care_peers_{runtime}', **of) * 1e3:.1f}")
        (macs,) = {cell.raw["macs"] for cell in record("care_peers_openvino").select(model=model)}
        rows.append([model, {**PUBLISHED_TOP1, **PEERS_TOP1}[model], f"{macs / 1e9:.2f}", *times])
    head = ["OpenVINO float32, ms", "OpenVINO bfloat16, ms", "ONNX Runtime float32, ms"]
    return markdown(["model", "published top-1", "GMACs", *head], rows)


def dense_memory() -> str:
    limit = f"over {record('dense_memory').settings['limit'] / MIB:,.0f}"
    rows = []
    for name in values("dense_memory", "backbone"):
        cells = [cell.raw["bytes"] for cell in record("dense_memory").select(backbone=name)]
        title = "the same, attention weights written out" if name.endswith("(explicit)") else name
        rows.append([title, *(limit if each is None else f"{each / MIB:,.0f}" for each in cells)])
    return markdown(["pixels a side", *values("dense_memory", "img_size")], rows)


def _cost(mechanism: str, img_size: int) -> str:
    raw = record("attention_cost").get(mechanism=mechanism, img_size=img_size)
    assert raw
    seconds, mib = statistics.median(raw["seconds"]), raw["bytes"] / MIB
    return f"{seconds * 1e3:,.1f} ms, {mib:,.1f} MiB"


SIZES = (224, 448, 896, 1792)


def attention_cost() -> str:
    mechanisms = {"focused": "focused", "softmax (fused)": "softmax, fused", "softmax (explicit)": "softmax, explicit"}
    rows = [[size, *(_cost(name, size) for name in mechanisms)] for size in SIZES]
    return markdown(["image side", *mechanisms.values()], rows)


def key_only_cost() -> str:
    mechanisms = {"key-only": "key-only", "softmax (fused)": "softmax, fused"}
    rows = [[title, *(_cost(name, size) for size in SIZES)] for name, title in mechanisms.items()]
    return markdown(["image side", *SIZES], rows)


def flatten_speed() -> str:
    hosts = {"flatten_deit_tiny": "DeiT-T", "flatten_pvt_v2_b0": "PVTv2-B0", "flatten_swin_tiny": "Swin-T"}
    sizes = values("flatten_speed", "img_size")
    rows = []
    for phase in values("flatten_speed", "phase"):
        for host, title in hosts.items():
            ratios = []
            for size in sizes:
                cells = record("flatten_speed").select(phase=phase, host=host, img_size=size)
                seconds = {cell.of["model"]: statistics.median(cell.raw["seconds"]) for cell in cells}
                (softmax,) = seconds.keys() - {host}
                ratios.append(f"{seconds[host] / seconds[softmax]:.2f}")
            rows.append([f"{title}, {phase}", *ratios])
    return markdown(["", *sizes], rows)


def _finals(name: str, arm: str) -> list[float]:
    return [cell.raw["top1"][-1] for cell in record(name).select(arm=arm)]


def distillation() -> str:
    titles = {"labels": "labels alone", "hard": "half of the loss the teacher's choice"}
    rows = []
    for arm, title in titles.items():
        seconds = statistics.mean(cell.raw["seconds"] for cell in record("distillation").select(arm=arm))
        rows.append([title, spread(_finals("distillation", arm)), f"{seconds:,.0f}"])
    return markdown(["arm", "top-1", "seconds of one core"], rows)


def linearize_recovery() -> str:
    arms = {"distilled": "distilled", "fine-tuned": "fine-tuned (labels alone)", "scratch": "from scratch"}
    cells = record("linearize_recovery").cells
    steps = cells[0].raw["steps"]
    rows = []
    for place, step in enumerate(steps):
        found = [[cell.raw["top1"][place] for cell in cells if cell.of["arm"] == arm] for arm in arms]
        rows.append([f"{step}, the conversion" if step == 0 else step, *map(spread, found)])
    original = record("linearize_recovery").settings["original_top1"]
    rows.append(["the softmax original", f"{original:.2%}".replace("%", " %"), "", ""])
    return markdown(["update", *arms.values()], rows)


def linglo_choice() -> str:
    titles = {"grafted": "`modulate`, grafted layout", "local_global": "**`local_global`**", "softmax": "softmax"}
    rows = []
    for arm in values("linglo_choice", "arm"):
        raw = next(record("linglo_choice").select(arm=arm)).raw
        ratio = f"{raw['args']['mlp_ratios'][-1]:g}"
        counts = [f"{raw['parameters']:,}", f"{raw['macs'] / 1e6:.1f} M"]
        rows.append([titles.get(arm, f"`{arm}`"), ratio, *counts, spread(_finals("linglo_choice", arm))])
    return markdown(["arm", "MLP ratio", "parameters", "MACs", "top-1"], rows)


def loading() -> str:
    rows = [
        [cell.of["work"], cell.of["contender"], statistics.median(cell.raw["images_per_second"])]
        for cell in record("loading").cells
    ]
    return markdown(["", "", "images/s"], rows)


FAMILIES = {
    "CARE": ("care_*", "[CVPR 2025](https://arxiv.org/abs/2411.16170)"),
    "FLatten-PVT": ("flatten_pvt_[!v]*", "[ICCV 2023](https://arxiv.org/abs/2308.00442)"),
    "FLatten-PVTv2": ("flatten_pvt_v2_*", ""),
    "FLatten-Swin": ("flatten_swin_*", ""),
    "FLatten-CSwin": ("flatten_cswin_*", ""),
    "FLatten-DeiT": ("flatten_deit_*", ""),
    "LinGlo": ("linglo_*", "[a reading](docs/linglo.md) of [an abstract](https://arxiv.org/abs/2207.00188)"),
}


def families() -> str:
    def span(numbers: list[float], unit: str) -> str:
        least, most = min(numbers), max(numbers)
        return f"{least:.3g} {unit}" if least == most else f"{least:.3g} to {most:.3g} {unit}"

    rows = []
    for family, (pattern, paper) in FAMILIES.items():
        models = sorted(catalogue(pattern), key=lambda facts: facts.params)
        names = [facts.name for facts in models]
        prefix = re.split(r"[*[]", pattern)[0]
        listed = f"`{names[0]}`, " + ", ".join(f"`{name.removeprefix(prefix)}`" for name in names[1:])
        parameters = span([facts.params / 1e6 for facts in models], "M")
        macs = span([facts.macs / 1e9 for facts in models], "G")
        known = [f"{facts.top1:g} ({facts.name.removeprefix(prefix)})" for facts in models if facts.top1]
        rows.append([family, listed, parameters, macs, ", ".join(known) or "-", paper])
    head = ["family", "models", "parameters", "MACs at its own size", "ImageNet-1K top-1, %, published", "paper"]
    return markdown(head, rows)


def seconds_of(workload: str, setting: str) -> float:
    """Return the median of the processor time of a workload with one setting of the allocator."""
    cells = record("allocator").select(workload=workload, allocator=setting)
    return statistics.median(second for cell in cells for second in cell.raw["seconds"])


def allocator() -> str:
    rows = []
    for workload in values("allocator", "workload"):
        before, after = (seconds_of(workload, setting) for setting in SETTINGS)
        runs = (record("allocator").select(workload=workload, allocator=setting) for setting in SETTINGS)
        peaks = [statistics.median(cell.raw["peak_bytes"] for cell in cells) / MIB for cells in runs]
        rows.append([workload, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}", *(f"{p:,.0f}" for p in peaks)])
    return markdown(["", "system, s", "kept, s", "ratio", "system, MiB", "kept, MiB"], rows)


def allocator_pixel() -> str:
    names = [w.partition(",")[0] for w in values("allocator", "workload") if w.endswith("inference at 1792")]
    rows = [["system", *(f"{pixel_cost(name, 'system'):.2f}" for name in names)]]
    rows += [["kept", *(f"{pixel_cost(name, 'keep'):.2f}" for name in names)]]
    return markdown(["", *names], rows)


def pixel_cost(name: str, setting: str) -> float:
    """Return the time of a pixel at 1792 pixels a side over that at 448."""
    small, large = (seconds_of(f"{name}, inference at {size}", setting) for size in (448, 1792))
    return large / small / (1792 / 448) ** 2


SETTINGS = ("system", "keep")


def study_cost() -> str:
    return markdown(["study", "runs", "processor time", "raw values"], evidence.cost())


def kernel_counts() -> str:
    found = record("kernel_counts")
    rows = []
    for cell in found.cells:
        tokens, raw = found.settings["tokens"], cell.raw
        moved = [raw["floor"]["bytes"], raw["fused"]["bytes"], raw["fused"]["requested"], raw["eager"]["bytes"]]
        ratio = raw["eager"]["bytes"] / raw["fused"]["bytes"]
        launches = f"{raw['fused']['launches']}, {raw['eager']['launches']}"
        numbers = [f"{value / tokens:,.0f}" for value in moved]
        rows.append([cell.of["operator"], cell.of["type"], cell.of["direction"], *numbers, f"{ratio:.1f}", launches])
    ways = ["floor", "kernels", "asked of caches", "eager", "eager / kernels", "launches of both"]
    return markdown(["operator", "type", "direction", *ways], rows)


def kernel_binaries() -> str:
    found = record("kernel_binaries")
    rows = []
    for target in values("kernel_binaries", "target"):
        for operator in values("kernel_binaries", "operator"):
            for kernel in values("kernel_binaries", "kernel"):
                raw = [cell.raw for cell in found.select(target=target, operator=operator, kernel=kernel)]
                if not raw:
                    continue

                def span(name: str, scale: float = 1, raw: list[dict[str, Any]] = raw) -> str:
                    least, most = (round(end(one[name] for one in raw) * scale) for end in (min, max))
                    return f"{least} to {most}"

                spilled = max(one["spilled_bytes"] for one in raw)
                shared, occupancy = span("shared_bytes", 1 / 1024), span("occupancy", 100)
                cells = [len(raw), span("registers"), spilled, shared, span("load_bytes"), occupancy]
                rows.append([target, operator, f"`{kernel}`", *cells])
    needs = ["binaries", "registers", "spilled", "shared, KiB", "widest load, bytes", "occupancy, %"]
    head = ["processor", "operator", "kernel", *needs]
    return markdown(head, rows)


def timm_tests() -> str:
    counts: dict[str, Counter[str]] = {}
    for cell in record("timm_tests").cells:
        counts.setdefault(cell.of["test"], Counter())[cell.raw["outcome"]] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    kinds = ("passed", "failed", "skipped")
    head = f"test, on {len(values('timm_tests', 'model'))} models"
    rows = [[f"`{test}`", *(count[kind] for kind in kinds)] for test, count in sorted(counts.items())]
    return markdown([head, *kinds], [*rows, ["all", *(total[kind] for kind in kinds)]])


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        attention_cost,
        attention_focus,
        care_peers,
        care_speed,
        care_steps,
        allocator,
        allocator_pixel,
        dense_memory,
        distillation,
        export_formats,
        families,
        flatten_speed,
        kernel_binaries,
        kernel_counts,
        key_only_cost,
        linearize_recovery,
        linglo_choice,
        loading,
        *pretraining_tables.TABLES,
        *quantization_tables.TABLES,
        runtimes,
        study_cost,
        timm_tests,
    )
}
for page in (evidence.care, evidence.flatten, evidence.linglo, evidence.ours):
    TABLES[f"evidence_{page.__name__}"] = partial(lambda rows: markdown(evidence.HEAD, rows()), page)


def renewed(text: str) -> str:
    """Return a page with every table as the records give it."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if (new := renewed(text)) != text:
            with atomic_write(page) as temporary:
                temporary.write_text(new)
            print(f"renewed {page.name}")


if __name__ == "__main__":
    main()
