"""CARE-S0 against a plain transcription of its formulas, in one run: a training step and inference at 224x224.

    python benchmarks/care_speed.py --out benchmarks/care_speed.json

They take turns; a ratio below 1 means that linvit's model is faster than the transcription in the same precision
(``linvit.models.care_reference``, contiguous NCHW). Before anything is timed, the outputs are compared.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

import linvit  # noqa: F401 -- registers the models
from linvit.bench import median, take_turns
from linvit.bench.records import Record
from linvit.models.care_reference import care_reference

NAME = "care_s0"
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def stepper(parameters: list[torch.Tensor], forward: Callable[[], torch.Tensor], batch: int) -> Callable[[], None]:
    """A training step: forward, cross-entropy, backward, AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    target = torch.arange(batch) % 1000

    def step() -> None:
        cross_entropy(forward().float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def contenders(batch: int, precision: str, training: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 224, 224)
    model = timm.create_model(NAME, layer_scale_init_value=0.5)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    parameters = [weights[name].requires_grad_(training) for name, _ in model.named_parameters()]

    def transcription() -> torch.Tensor:
        with autocast(precision):
            head, dist_head = care_reference(weights, images, training=training)
            return (head + dist_head) / 2

    calls: dict[str, Callable[[], torch.Tensor]] = {"transcription": transcription}
    owned = {"transcription": parameters}
    for layout, memory_format in LAYOUTS.items():
        own = timm.create_model(NAME).train(training).to(memory_format=memory_format)
        own.load_state_dict(model.state_dict())

        def ours(own: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
            with autocast(precision):
                return own(x)

        calls[layout] = partial(ours, own, images.contiguous(memory_format=memory_format))
        owned[layout] = list(own.parameters())

    with torch.no_grad():
        expected = calls["transcription"]().float()
        for layout in LAYOUTS:
            error = (calls[layout]().float() - expected).abs().max() / expected.abs().max()
            assert error < (1e-4 if precision == "float32" else 0.1), (layout, error)
    if training:
        return {name: stepper(owned[name], call, batch) for name, call in calls.items()}
    return {name: torch.inference_mode()(call) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the raw times here, as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    settings = {"threads": torch.get_num_threads(), "rounds": args.rounds}
    record = Record.resume(args.out, "CARE-S0 and the plain transcription of its formulas at 224x224", settings)
    print(f"{'':24}{'transcription':>14}" + "".join(f"{layout:>24}" for layout in LAYOUTS))
    for training in (True, False):
        for batch in (1, 32):
            for precision in ("float32", "bfloat16"):
                phase = "training step" if training else "inference"
                of = {"phase": phase, "batch": batch, "precision": precision}
                if record.get(**of, contender="transcription"):
                    continue
                seconds = take_turns(contenders(batch, precision, training), args.rounds, warmup=2)
                middle = median(seconds)
                base = middle["transcription"]
                line = f"{phase}, {batch}, {precision}"
                line = f"{line:28}{base * 1e3:8.1f} ms"
                for layout in LAYOUTS:
                    line += f"{middle[layout] * 1e3:10.1f} ms  ratio {middle[layout] / base:4.2f}"
                print(line, flush=True)
                for name, values in seconds.items():
                    record.add({**of, "contender": name}, {"seconds": values})


if __name__ == "__main__":
    main()
