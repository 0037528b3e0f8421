"""A soak test: memory, open files and processes over 2,000 training steps and 20,000 predictions of a tiny network.

    python benchmarks/soak.py docs/soak.png

It prints the slopes over the second half of each part, and fails if one is not flat. Linux only (/proc).
"""

import contextlib
import multiprocessing
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytorch_lightning as pl
import torch

import crosscoop
from crosscoop.cli import main

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS, PREDICTIONS = 2000, 20000
FIT = """fit --network.branches=[test_resnet,test_byobnet] --network.channels 16 --network.separable true
--data.dataset Streets --data.dataset.num_train 200 --data.dataset.num_val 2 --data.dataset.height 32
--data.dataset.width 64 --data.batch_size 2 --data.crop_size 32 --data.num_workers 2 --trainer.accelerator cpu
--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.max_epochs -1
--trainer.callbacks+=soak.Watch"""
QUANTITIES = ("memory in MiB", "open files", "worker processes")


def look() -> tuple[float, int, int]:
    """Return resident memory in MiB, open file descriptors and child processes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20, len(open_files()), len(multiprocessing.active_children())


def open_files() -> list[str]:
    """Return the names of open files, without numbers such as those of sockets."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself, already closed
            names.append(re.sub(r"[\d_]+", "", str(entry.readlink())))
    return names


class Watch(pl.Callback):
    """A callback that records the quantities every 20 training steps."""

    rows: list[tuple[float, ...]] = []  # noqa: RUF012
    names: list[Counter[str]] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the quantities."""
        if trainer.global_step % 20 == 0:
            Watch.rows.append((trainer.global_step, *look()))
            Watch.names.append(Counter(open_files()))


def soak(output: Path) -> None:
    """Train and predict, print the slopes and plot the quantities."""
    import soak as imported  # the class that the command line imports, not that of __main__

    with tempfile.TemporaryDirectory() as folder:
        main([*FIT.split(), "--trainer.max_steps", str(STEPS), "--run", folder])
        predictor = crosscoop.load(Path(folder) / "last.ckpt")
        image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
        predicted = []
        for number in range(PREDICTIONS + 1):
            predictor(image)
            if number % 200 == 0:
                predicted.append((number, *look()))
    parts = {"training steps": np.array(imported.Watch.rows), "predictions": np.array(predicted)}
    half = imported.Watch.names[len(imported.Watch.names) // 2 :]
    for name in sorted(set().union(*half)):
        counts = [names[name] for names in half]
        if len(set(counts)) > 1:
            print(f"open while training: {min(counts)} to {max(counts)} of {name}")
    figure, axes = plt.subplots(3, 2, figsize=(9, 6), sharex="col")
    flat = True
    for column, (what, rows) in enumerate(parts.items()):
        later = rows[len(rows) // 2 :]
        for row, quantity in enumerate(QUANTITIES):
            slope = np.polyfit(later[:, 0], later[:, row + 1], 1)[0] * 1000
            flat &= abs(slope) < (2 if row == 0 else 0.5)
            print(f"{what}: {quantity} {later[0, row + 1]:.0f} to {later[-1, row + 1]:.0f}, {slope:+.3f} per 1000")
            axes[row, column].plot(rows[:, 0], rows[:, row + 1])
            axes[row, column].set_ylim(0, rows[:, row + 1].max() * 1.2 + 1)
            axes[row, 0].set_ylabel(quantity)
        axes[2, column].set_xlabel(what)
    figure.tight_layout()
    figure.savefig(output, dpi=70)
    raise SystemExit(0 if flat else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    torch.set_num_threads(1)
    soak(Path(sys.argv[1]))
