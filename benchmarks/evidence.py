"""The rows of docs/evidence.md: each claim, what was measured for it, and what that says, from the records alone."""

import statistics

from records_of import middle, record

from linvit.catalogue import catalogue
from linvit.studies.report import Difference, difference

Row = list[str]
HEAD = ["claim", "measured", "so it", "command", "raw values"]
STUDY = "linvit study {name} --data.root imagenette128"


def raw(*names: str) -> str:
    return ", ".join(f"[{name}](../benchmarks/{name}.json)" for name in names)


def finals(name: str, arm: str) -> dict[int, float]:
    """Return the last top-1 of each seed."""
    return {cell.of["seed"]: (cell.raw.get("top1") or cell.raw["values"])[-1] for cell in record(name).select(arm=arm)}


def compared(name: str, one: str, other: str) -> Difference:
    ours, theirs = finals(name, one), finals(name, other)
    return difference(one, other, [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])


def points(apart: Difference) -> str:
    """Return a difference of top-1 in points, with its 95 % interval."""
    assert apart.interval
    low, high = (f"{100 * value:+.2f}" for value in apart.interval)
    return f"{100 * apart.mean:+.2f} points ({low} to {high}; {apart.n} seeds)"


def verdict(apart: Difference) -> str:
    """Say what a difference does to the claim that the first of its arms is the better one."""
    if not apart.differ:
        return "**is not decided**: no difference shows"
    return "**holds**" if apart.mean > 0 else "**does not hold**"


def by_study(claim: str, name: str, one: str, other: str, command: str | None = None) -> Row:
    apart = compared(name, one, other)
    return [claim, f"{one} against {other}: {points(apart)}", verdict(apart), f"`{command}`", raw(name)]


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
    study = STUDY.format(name="mechanism_deit")
    waiting = "not measured yet"
    return [
        open_question("Plain linear attention loses clearly against softmax", waiting, study),
        open_question("Focusing wins part of that back", waiting, study),
        open_question("Restoring the rank wins part of that back", waiting, study),
        open_question("Both together reach softmax attention or pass it", waiting, study),
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
        open_question("It improves detection and segmentation", waiting, "linvit study detection --data.root bccd"),
    ]


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
        open_question("Both interactions help", "not measured yet", STUDY.format(name="care")),
        open_question("Decoupling beats stacking; the memory helps", "not measured yet", STUDY.format(name="care")),
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
        by_study("Local and global interaction beats global alone", "linglo_choice", "local_global", "modulate", study),
        by_study("... and a gate of the queries", "linglo_choice", "local_global", "gate", study),
        by_study(
            "Alternating convolution and attention beats grafting (interaction: `modulate`)",
            "linglo_choice",
            "modulate",
            "grafted",
            study,
        ),
        linear_cost("Time and memory are linear in the size of the input", "key-only"),
        open_question(
            "State of the art at few parameters", "cannot be tested here: no ImageNet, and no published code"
        ),
    ]
