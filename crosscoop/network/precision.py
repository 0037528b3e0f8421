"""Detection of processors that emulate bfloat16, which is many times slower."""

import os
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional

from crosscoop.files import note

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""The limits of oneDNN's instructions under which it does not use those for bfloat16."""


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16, and oneDNN may use them (`ONEDNN_MAX_CPU_ISA`)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BFLOAT16:
        return False
    # torch.cpu.get_capabilities is newer than the oldest supported torch
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    older = (getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")) or any(older)


def note_emulated_bfloat16(precision: str, device: torch.device) -> None:
    """Print a note before training in bfloat16 on a CPU that only emulates it.

    Args:
        precision: Lightning's name for the precision, such as `bf16-mixed`.
        device: The device to train on.
    """
    if precision.startswith("bf16") and device.type == "cpu" and not native_bfloat16(device):
        ratio = seconds_of_convolution(torch.bfloat16) / seconds_of_convolution(torch.float32)
        note(
            f"trainer.precision is {precision}, but this CPU has no instructions for bfloat16: a convolution takes "
            f"{ratio:.1f} times as long as with 32-true."
        )


def seconds_of_convolution(dtype: torch.dtype) -> float:
    """Measure the seconds of a 3x3 convolution of 64 channels at 64 x 64 on the CPU, the shortest of four runs."""
    feature, weight = torch.rand(1, 64, 64, 64, dtype=dtype), torch.rand(64, 64, 3, 3, dtype=dtype)
    times = []
    for _ in range(4):
        start = perf_counter()
        functional.conv2d(feature, weight, padding=1)
        times.append(perf_counter() - start)
    return min(times)
