"""Print each model's largest relative error against the published code's logits: ``python -m tests.golden``."""

import timm
import torch

import linvit  # noqa: F401 -- registers the models
from linvit.weights import compare
from tests.golden import NAMES, load_golden, relative_error


@torch.no_grad()
def main() -> None:
    print(f"{'largest |difference| / largest |logit|':40}{'float64':>10}{'float32':>10}")
    for name in NAMES:
        golden = load_golden(name)
        model = timm.create_model(name, dtype=torch.float64).eval()
        model.load_state_dict(compare(golden["weights"], model).tensors, strict=True)
        errors = []
        for dtype in (torch.float64, torch.float32):
            logits = model.to(dtype)(golden["images"].to(dtype))[0]
            errors.append(relative_error(logits, golden["logits"]))
        print(f"{name:40}{errors[0]:>10.1e}{errors[1]:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
