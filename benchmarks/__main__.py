"""Run all or the named comparisons, and write docs/benchmarks.md from all available results."""

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import torch

from benchmarks import document
from benchmarks.measure import Setting
from crosscoop.network.precision import native_bfloat16

RESULTS = Path(__file__).parent / "results.json"
VERSIONS = ("torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "segmentation-models-pytorch")
VERSIONS = (*VERSIONS, "albumentations", "opencv-python-headless", "onnxruntime")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that hide instructions of the processor from oneDNN and torch."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"comparisons to run, of {', '.join(document.SECTIONS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no results: checks that everything runs")
    parser.add_argument(
        "--threads", type=int, default=1, help="several measure wall-clock time, on an idle machine; default: 1"
    )
    parser.add_argument("--document", action="store_true", help="only regenerate the document from earlier results")
    parser.add_argument("--voc", help="folder of PASCAL VOC 2012; default: generated files of the same size")
    parser.add_argument("--cityscapes", help="folder of Cityscapes; default: generated files of the same size")
    given = parser.parse_args()
    if unknown := set(given.names) - set(document.SECTIONS):
        parser.error(f"got {', '.join(sorted(unknown))}, expected names from {', '.join(document.SECTIONS)}")
    if given.threads < 1:
        parser.error(f"--threads: got {given.threads}, expected at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = tuple(f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ)
    setting = Setting(given.quick, device, given.voc, given.cityscapes, limits)
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(1)
    for name in [] if given.document else given.names or document.SECTIONS:
        print(f"{name} ...", file=sys.stderr)
        rows = importlib.import_module(f"benchmarks.{name}").run(setting)
        for row in rows:
            print(document.line(row), row.get("note", ""), sep="\n")
        if not given.quick:
            command = " ".join([*limits, f"python -m benchmarks {name}"]) + "".join(
                f" --{key} ROOT" for key in ("voc", "cityscapes") if getattr(given, key) and name == "pipelines"
            )
            key = f"{name}_limited" if limits else name
            if given.threads > 1:
                command, key = f"{command} --threads {given.threads}", f"{key}_{given.threads}_threads"
            result = {"date": date.today().isoformat(), "command": command, "machine": machine(), "rows": rows}
            known = json.loads(RESULTS.read_text()) | {key: result}
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    if not given.quick:
        document.write(RESULTS, Path("docs"))


def machine() -> dict[str, str]:
    """Return processor, its widest instructions, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    bfloat16 = "native" if native_bfloat16(torch.device("cpu")) else "emulated"
    instructions = f"{torch.backends.cpu.get_cpu_capability()} with {bfloat16} bfloat16"
    about = {
        "cpu": model,
        "instructions": instructions,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about | {name: version(name) for name in (*VERSIONS, *(["pyspng"] if find_spec("pyspng") else []))}


if __name__ == "__main__":
    main()
