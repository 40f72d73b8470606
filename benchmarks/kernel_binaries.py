"""Compile every configuration of the kernels, for processors that need not be there, and read what the binaries need.

    python benchmarks/kernel_binaries.py --out benchmarks/kernel_binaries.json

Registers, spilled bytes and shared memory are read off the binaries (by NVIDIA's cuobjdump, which Triton brings along,
and from the metadata in AMD's assembly), the widest load off the assembly; the occupancy follows from them. Takes about
5 minutes on one core, and goes on where it was stopped.
"""

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from linvit.bench.records import Record
from linvit.ops.focused import kernels as focused
from linvit.ops.key_only import kernels as key_only
from linvit.ops.launch import pool_tile, precision, tile
from linvit.ops.linear import kernels as linear

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
HEAD_SIZES = (16, 32, 64, 128)
# Registers of a multiprocessor, KiB of shared memory of it and of a block, warps; AMD's: of a compute unit.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 65536, 164, 163, 64),
    "sm_89": (GPUTarget("cuda", 89, 32), 65536, 100, 99, 48),
    "sm_90": (GPUTarget("cuda", 90, 32), 65536, 228, 227, 64),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 131072, 64, 64, 32),
}
OPERATORS: dict[str, list] = {
    "linear": [linear.summarise, linear.look_up, linear.query_backward, linear.key_backward],
    "focused": [
        *(focused.measure, linear.summarise, linear.look_up),
        *(linear.query_backward, focused.query_gradient, linear.key_backward, focused.key_gradient),
    ],
    "key-only": [
        *(key_only.pool, key_only.unite, key_only.pool_gradient),
        *(key_only.local_pool, key_only.local_measure, key_only.local_pool_gradient),
    ],
}
STATE = ("summary", "dsummary", "gain", "weights", "dgain", "stats", "along", "part", "context", "level")


def configurations() -> list[tuple[str, Any, torch.dtype, int, int]]:
    """Return operator, kernel, type, head size and layout (0 tokens of channels, 1 channels of tokens) of all."""
    return [
        (operator, kernel, dtype, size, layout)
        for dtype in TYPES
        for operator, kernels in OPERATORS.items()
        for size in HEAD_SIZES
        for layout in ((0, 1) if operator == "linear" else (0,))
        for kernel in kernels
    ]


def resources(operator: str, kernel: Any, dtype: torch.dtype, size: int, layout: int, target: str) -> dict[str, Any]:
    """Compile a configuration and return what its binary needs."""
    gpu, registers_of_all, shared_of_all, shared_of_block, warps_of_all = TARGETS[target]
    hip = gpu.backend == "hip"
    if operator == "key-only":
        chosen = pool_tile(size)
    else:
        chosen = tile(size, size, kernel.__name__, dtype, operator == "focused", hip)
    warps = chosen.pop("num_warps")
    features = {"linear": "elu1", "focused": "focus"}.get(operator)
    constants = {"D": size, "E": size, "FEATURES": features, "EPS": 1e-6, "POWER": 3.0, "ACC": tl.float32}
    constants |= {"POSITIONS": operator == "focused", "PRECISION": precision(dtype, hip)} | chosen
    for name in ("X", "V", "G", "OUT", "DX", "DV"):
        constants |= {f"{name}_LAYOUT": layout, f"{name}_ALIGN": 1 if layout else 16}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in STATE or (name == "g" and operator == "key-only" and kernel is key_only.pool_gradient):
            return "*fp32"
        if name in ("x", "v", "g", "out", "dx", "dv", "positions", "s", "ds"):
            return f"*{TYPES[dtype]}"
        return "i64" if name.endswith("_b") else "i32"

    signature = {name: kind(name) for name in kernel.arg_names}
    pointers = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in pointers})
    compiled = triton.compile(source, target=gpu, options={"num_warps": warps})
    if hip:
        text = compiled.asm["amdgcn"]
        registers, spilled = (
            int(re.findall(rf"\.{name}: *(\d+)", text)[-1]) for name in ("vgpr_count", "private_segment_fixed_size")
        )
    else:
        text = compiled.asm["ptx"]
        registers, spilled = _read_cubin(compiled.asm["cubin"])
    shared, threads = compiled.metadata.shared, warps * gpu.warp_size
    blocks = min(
        registers_of_all // (-(-registers // 8) * 8 * threads),
        shared_of_all * 1024 // (shared + (0 if hip else 1024)) if shared or not hip else 99,
        warps_of_all // warps,
    )
    fits, occupancy = shared <= shared_of_block * 1024, round(blocks * warps / warps_of_all, 3)
    return {
        **{"registers": registers, "spilled_bytes": spilled, "shared_bytes": shared, "warps": warps},
        **{"load_bytes": _widest_load(text, hip), "fits": fits, "occupancy": occupancy},
    }


def _widest_load(text: str, hip: bool) -> int:
    """Return the most bytes of memory that a thread of assembly loads at once."""
    if hip:
        words = re.findall(r"(?:global|buffer)_load_dword(?:x(\d))?\b", text)
        return max((4 * int(word or 1) for word in words), default=2)
    loads = re.findall(r"ld\.global(?:\.[a-z_]+)*(?:\.v(\d))?\.b(\d+)", text)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^,]*,[^,]*, *(0x[0-9a-f]+|\d+)", text)
    return max([int(vector or 1) * int(bits) // 8 for vector, bits in loads] + [int(size, 0) for size in copies])


def _read_cubin(binary: bytes) -> tuple[int, int]:
    """Return the registers of a thread and the bytes of its stack, which is where registers are spilled to."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)[0]
    return int(registers), int(stack) + int(local)


def main() -> None:
    """Compile all, print what does not fit, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the records here, as JSON")
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--quick", action="store_true", help="one type, head size and layout")
    options = parser.parse_args()
    chosen = configurations()
    if options.quick:
        chosen = [c for c in chosen if c[2] is torch.bfloat16 and c[3] == 32 and c[4] == 0]
    record = Record.resume(options.out, "binaries of the kernels", {"triton": triton.__version__})
    for target in options.target:
        for operator, kernel, dtype, size, layout in chosen:
            of = {"operator": operator, "kernel": kernel.__name__, "type": TYPES[dtype], "head_size": size}
            of |= {"layout": ("channels last", "channels first")[layout], "target": target}
            if record.get(**of) is None:
                record.add(of, resources(operator, kernel, dtype, size, layout, target))
            needs = record.get(**of)
            if needs and (needs["spilled_bytes"] or not needs["fits"]):
                print("does not fit:", of, needs, flush=True)


if __name__ == "__main__":
    main()
