"""The rows of docs/evidence.md: each claim, what was measured for it, and what that says, from the records alone."""

import statistics
from collections.abc import Iterator

from records_of import HERE, middle, record

from linvit.catalogue import catalogue
from linvit.studies.report import Difference, difference, processor_time

Row = list[str]
HEAD = ["claim", "measured", "so it", "command", "raw values"]
STUDY = "linvit study {name} --data.root imagenette128"
WAITING = "not measured yet"
HOSTS = {"mechanism_deit": "DeiT", "mechanism_pvt": "PVT"}
"""Studies of the mechanisms, and the host that holds them."""
EQUAL = 0.01
"""How far below another an accuracy may be and still be said to reach it."""
ENOUGH = 3
"""Seeds from which on a claim is decided."""


def raw(*names: str) -> str:
    return ", ".join(f"[{name}](../benchmarks/{name}.json)" for name in names)


def finals(name: str, arm: str) -> dict[int, float]:
    """Return the last top-1 of each seed."""
    return {cell.of["seed"]: (cell.raw.get("top1") or cell.raw["values"])[-1] for cell in record(name).select(arm=arm)}


def compared(name: str, one: str, other: str) -> Difference:
    ours, theirs = finals(name, one), finals(name, other)
    return difference(one, other, [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])


def measured(name: str) -> bool:
    """Tell whether a study has a record with every arm."""
    return (HERE / f"{name}.json").is_file()


def points(apart: Difference) -> str:
    """Return a difference of accuracies in points, with its 95 % interval."""
    if apart.interval is None:
        return f"{100 * apart.mean:+.2f} points (one seed)"
    low, high = (f"{100 * value:+.2f}" for value in apart.interval)
    return f"{100 * apart.mean:+.2f} points ({low} to {high}; {apart.n} seeds)"


def verdict(apart: Difference) -> str:
    """Say what a difference does to the claim that the first of its arms is the better one."""
    if apart.n < ENOUGH:
        return f"**is not decided**: {apart.n} of {ENOUGH} seeds"
    if not apart.differ:
        return "**is not decided**: no difference shows"
    return "**holds**" if apart.mean > 0 else "**does not hold**"


def reached(apart: Difference) -> str:
    """Say what a difference does to the claim that the first of its arms is as good as the other, or better."""
    if apart.interval is None or apart.n < ENOUGH:
        return verdict(apart)
    if apart.interval[0] > -EQUAL:
        return "**holds**: it passes it" if apart.differ else "**holds**: at most a point below"
    return verdict(apart) if not apart.differ else "**does not hold**"


def by_study(claim: str, name: str, one: str, other: str, command: str | None = None, said=verdict) -> Row:
    """Return the row of a claim that the arm ``one`` of a study is better than ``other``."""
    if not measured(name):
        return open_question(claim, WAITING, command or STUDY.format(name=name))
    apart = compared(name, one, other)
    told = f"{one} against {other}: {points(apart)}"
    return [claim, told, said(apart), f"`{command or STUDY.format(name=name)}`", raw(name)]


def by_mechanism(claim: str, pairs: list[tuple[str, str]], said=verdict) -> Iterator[Row]:
    """Yield a row for each pair of arms in each host."""
    for name, host in HOSTS.items():
        for one, other in pairs:
            yield by_study(f"{claim} ({host})", name, one, other, said=said)


def mechanisms() -> list[Row]:
    return [
        *by_mechanism(
            "Plain linear attention loses clearly against softmax", [("softmax", "relu"), ("softmax", "elu + 1")]
        ),
        *by_mechanism("Focusing wins part of that back", [("p=3", "relu"), ("p=3 + rank", "p=1 + rank")]),
        *by_mechanism(
            "Restoring the rank wins part of that back",
            [("relu + rank", "relu"), ("elu + 1 + rank", "elu + 1"), ("p=3 + rank", "p=3")],
        ),
        *by_mechanism("Both together reach softmax attention or pass it", [("p=3 + rank", "softmax")], reached),
        *by_mechanism("A power of 3 is the best one", [("p=3 + rank", "p=2 + rank"), ("p=3 + rank", "p=4 + rank")]),
        sharpness(),
        restored(),
    ]


def share(mechanism: str, measure: str) -> float:
    """Return a measure of a trained model's attention in per cent of the highest: mean over photos and layers."""
    raw = record("attention_focus").get(attention=mechanism)
    assert raw
    return 100 * statistics.mean(statistics.mean(layers) for layers in raw[measure])


def sharpness() -> Row:
    entropy = {name: share(name, "entropy") for name in ("softmax", "linear", "focused")}
    told = ", ".join(f"{name} {value:.1f} %" for name, value in entropy.items())
    holds = entropy["focused"] < entropy["linear"]
    return [
        "Plain linear attention is flat, focusing sharpens it",
        f"entropy of the attention of trained small ViTs, of the highest: {told}",
        "**holds** in one training of each" if holds else "**does not hold**",
        "`python benchmarks/attention_focus.py` ([in full](analysis.md))",
        raw("attention_focus"),
    ]


def restored() -> Row:
    rank = {name: share(name, "rank") for name in ("softmax", "linear", "focused")}
    told = ", ".join(f"{name} {value:.1f} %" for name, value in rank.items())
    mixed = share("focused", "rank_mixed")
    holds = mixed > rank["linear"] and mixed >= rank["softmax"]
    return [
        "The depthwise convolution restores the rank that linear attention lacks",
        f"rank of the same, of full: {told}; focused with its convolution {mixed:.1f} %",
        "**holds** in one training of each; focusing alone hardly adds" if holds else "**does not hold**",
        "`python benchmarks/attention_focus.py` ([in full](analysis.md))",
        raw("attention_focus"),
    ]


def open_question(claim: str, why: str, command: str = "") -> Row:
    return [claim, "", f"*{why}*", f"`{command}`" if command else "", ""]


def per_pixel(mechanism: str) -> tuple[float, float]:
    """Return time and memory per pixel at the largest size over those at 448."""
    cells = list(record("attention_cost").select(mechanism=mechanism))
    small = next(cell for cell in cells if cell.of["img_size"] == 448)
    large = max(cells, key=lambda cell: cell.of["img_size"])
    pixels = (large.of["img_size"] / 448) ** 2
    time = statistics.median(large.raw["seconds"]) / statistics.median(small.raw["seconds"]) / pixels
    return time, large.raw["bytes"] / small.raw["bytes"] / pixels


def linear_cost(claim: str, mechanism: str) -> Row:
    time, memory = per_pixel(mechanism)
    softmax = per_pixel("softmax (fused)")[0]
    measured = (
        f"per pixel, from 448 to 1792 pixels a side, the time grows {time:.2f} times and the memory {memory:.2f} times "
        f"(softmax: time {softmax:.2f} times)"
    )
    holds = "**holds**" if max(time, memory) < 1.3 else "**does not hold**"
    return [claim, measured, holds, "`python benchmarks/attention_cost.py`", raw("attention_cost")]


def flatten_ratio(host: str, size: int) -> float:
    cells = record("flatten_speed").select(phase="inference", host=host, img_size=size)
    seconds = {cell.of["model"]: statistics.median(cell.raw["seconds"]) for cell in cells}
    (softmax,) = seconds.keys() - {host}
    return seconds[host] / seconds[softmax]


def flatten() -> list[Row]:
    ratios = {
        name: ", ".join(f"{flatten_ratio(host, size):.2f}" for size in (224, 448, 896))
        for name, host in {
            "DeiT-T": "flatten_deit_tiny",
            "PVTv2-B0": "flatten_pvt_v2_b0",
            "Swin-T": "flatten_swin_tiny",
        }.items()
    }
    speed = "; ".join(f"{name} {ratio}" for name, ratio in ratios.items())
    original = record("linearize_recovery").settings["original_top1"]
    against = difference(
        "converted", "original", [(value, original) for value in finals("linearize_recovery", "distilled").values()]
    )
    return [
        *mechanisms(),
        [
            "Focused attention can take softmax's place in existing transformers",
            f"a trained ViT, converted and taught by its original for one pass: {points(against)} against the original",
            "**holds** within what three seeds can tell" if not against.differ else verdict(against),
            f"`{STUDY.format(name='linearize_recovery')}`",
            raw("linearize_recovery"),
        ],
        linear_cost("Its cost is linear in the number of tokens", "focused"),
        [
            "It makes the hosts cheaper",
            f"time over that of the softmax host at 224, 448, 896 pixels: {speed}",
            "**holds in part**: DeiT from 448 pixels on, PVTv2 at all sizes, Swin hardly",
            "`python benchmarks/flatten_speed.py`",
            raw("flatten_speed"),
        ],
        open_question("ImageNet accuracies of the FLatten models", "cannot be tested here: no ImageNet"),
        *(
            by_study(
                f"It improves {name}",
                name,
                "focused (FLatten-PVTv2)",
                "softmax (PVTv2)",
                f"linvit study {name} --data.root {data}",
            )
            for name, data in (("detection", "bccd"), ("segmentation", "camvid"))
        ),
        *other_sizes(),
        *pays(),
    ]


def other_sizes() -> list[Row]:
    """Return a row for the size trained at, and one for each other: which attention keeps more of its accuracy."""
    claim, command = "Trained at one size, it loses less at others than softmax", STUDY.format(name="resolution")
    if not measured("resolution"):
        return [open_question(claim, WAITING, command)]
    tops: dict[int, dict[str, dict[int, float]]] = {}
    for arm in ("focused", "softmax"):
        for cell in record("resolution").select(arm=arm):
            for options, found in cell.raw["evaluations"].items():
                size = int(options.split("img-size=")[1].split()[0])
                tops.setdefault(size, {}).setdefault(arm, {})[cell.of["seed"]] = found["top1"]
    trained = record("resolution").settings["base"]["data"]["img_size"]

    def row(what: str, size: int, compared: str, since: dict[str, dict[int, float]] | None = None) -> Row:
        gains = {
            arm: {seed: top - (since[arm][seed] if since else 0.0) for seed, top in seeds.items()}
            for arm, seeds in tops[size].items()
        }
        both = sorted(gains["focused"].keys() & gains["softmax"].keys())
        apart = difference("focused", "softmax", [(gains["focused"][seed], gains["softmax"][seed]) for seed in both])
        accuracy = ", ".join(
            f"{arm} {100 * statistics.mean(seeds.values()):.1f} %" for arm, seeds in tops[size].items()
        )
        told = f"at {size} pixels: {accuracy}; {compared}{points(apart)}"
        return [what, told, verdict(apart), f"`{command}`", raw("resolution")]

    change = f"change from {trained}, focused over softmax: "
    return [
        row(f"It passes softmax at the size trained at, {trained}", trained, ""),
        *(row(claim, size, change, tops[trained]) for size in tops if size != trained),
    ]


def pays() -> list[Row]:
    """Return a row for each host: from which size linear attention is the faster one, by runtime."""
    claim = "It makes the hosts cheaper in other runtimes"
    if not measured("where_it_pays"):
        return [open_question(claim, WAITING, "linvit study where_it_pays")]
    rows = []
    for cell in record("where_it_pays").cells:
        ratios: dict[str, dict[int, list[float]]] = {}
        for one in cell.raw["contenders"]:
            contender = one["contender"]
            sizes = ratios.setdefault(contender["runtime"], {})
            sizes.setdefault(contender["size"][0], []).append(statistics.median(one["seconds"]))
        told = "; ".join(
            f"{runtime} " + ", ".join(f"{linear / softmax:.2f} at {size}" for size, (linear, softmax) in sizes.items())
            for runtime, sizes in ratios.items()
        )
        wins = [linear < softmax for sizes in ratios.values() for linear, softmax in sizes.values()]
        said = "**holds**" if all(wins) else "**holds in part**" if any(wins) else "**does not hold**"
        name = f"{claim} ({cell.of['arm']})"
        told = f"time over that of the softmax host: {told}"
        rows.append([name, told, said, "`linvit study where_it_pays`", raw("where_it_pays")])
    missing = record("where_it_pays").settings["bench"].keys() - {
        cell.of["arm"] for cell in record("where_it_pays").cells
    }
    rows.extend(open_question(f"{claim} ({arm})", WAITING, "linvit study where_it_pays") for arm in sorted(missing))
    return rows


def ours() -> list[Row]:
    return [
        by_study(
            "A converted model learns on better with its old weights than with new ones",
            "linearize_recovery",
            "fine-tuned",
            "scratch",
            STUDY.format(name="linearize_recovery"),
        ),
        by_study(
            "Its original teaches it more than the labels alone",
            "linearize_recovery",
            "distilled",
            "fine-tuned",
            STUDY.format(name="linearize_recovery"),
        ),
    ]


def care() -> list[Row]:
    macs = {facts.name: facts.macs / 1e9 for facts in catalogue("care_*")}
    size = [224, 224]
    times = {
        name: middle("care_peers_openvino", model=name, runtime="openvino", precision="float32", fused=True, size=size)
        for name in ("care_s0", "mobilevitv2_100", "swiftformer_s", "efficientvit_b1", "mobilenetv4_conv_medium")
    }
    over = ", ".join(f"{name} {times['care_s0'] / seconds:.2f}" for name, seconds in times.items() if name != "care_s0")
    return [
        [
            "S0 and S2 take 0.7 and 1.9 GMACs",
            f"counted: {macs['care_s0']:.2f} and {macs['care_s2']:.2f} G",
            "**holds**",
            "`python -m linvit.catalogue`",
            "[catalogue](../linvit/catalogue.json)",
        ],
        open_question("ImageNet accuracies of 78.4 and 82.1 %", "cannot be tested here: no ImageNet"),
        [
            "It is faster than its peers at such accuracies (the paper: on phones)",
            f"OpenVINO on a server's CPU, time of S0 over that of {over}",
            "**holds in part**: against the first two; the last two are faster and more accurate",
            "`linvit bench care_s0 --against ...` ([in full](deploy.md#care-and-its-peers))",
            raw("care_peers_openvino"),
        ],
        by_study(
            "Distillation helps (at five epochs; the paper: 300)",
            "distillation",
            "hard",
            "labels",
            STUDY.format(name="distillation"),
        ),
        by_study("The first interaction helps", "care", "whole", "without the first interaction"),
        by_study("The second interaction helps", "care", "whole", "without the second interaction"),
        by_study("The memory helps, at equal parameters and MACs", "care", "whole", "without the memory"),
        by_study("Decoupling beats stacking, at equal parameters and MACs", "care", "whole", "stacked"),
    ]


def linglo() -> list[Row]:
    study = STUDY.format(name="linglo")
    return [
        by_study(
            "Attention needs no query-key pairs (our reading: `local_global`)",
            "linglo_choice",
            "local_global",
            "softmax",
            study,
        ),
        *by_mechanism("... in other hosts, attention of the keys alone", [("key-only", "softmax")], reached),
        by_study("Local and global interaction beats global alone", "linglo_choice", "local_global", "modulate", study),
        by_study("... and a gate of the queries", "linglo_choice", "local_global", "gate", study),
        by_study(
            "Alternating convolution and attention beats grafting (interaction: `modulate`)",
            "linglo_choice",
            "modulate",
            "grafted",
            study,
        ),
        *(
            [by_study("... (interaction: `local_global`)", "linglo", "local_global", "local_global, grafted")]
            if measured("linglo")
            else []
        ),
        linear_cost("Time and memory are linear in the size of the input", "key-only"),
        open_question(
            "State of the art at few parameters", "cannot be tested here: no ImageNet, and no published code"
        ),
    ]


STUDIES = {
    "linglo_choice": "readings of LinGlo",
    "linearize_recovery": "linearization",
    "distillation": "distillation of CARE",
    "mechanism_deit": "mechanisms in a small DeiT",
    "mechanism_pvt": "mechanisms in a small PVT",
    "care": "parts of CARE",
    "linglo": "readings of LinGlo, layouts",
    "resolution": "other sizes",
    "detection": "detection",
    "segmentation": "segmentation",
    "where_it_pays": "speed by runtime",
    "pretraining": "learning without labels",
    "pretrained_detection": "detection after it",
    "pretrained_segmentation": "segmentation after it",
}


def cost() -> list[Row]:
    """Return what each study took."""
    rows = []
    for name, title in STUDIES.items():
        if measured(name):
            runs = [cell.raw for cell in record(name).cells]
            seconds = [one | {"processor_seconds": one.get("processor_seconds", one.get("seconds"))} for one in runs]
            kept = all(isinstance(one["processor_seconds"], float | None) for one in seconds)
            time = processor_time(seconds) if kept else "-"
            rows.append([title, str(len(runs)), "not kept" if time == "-" else time, raw(name)])
    return rows
