"""Checks of Lightning's options before anything is built; each message names the option."""

from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from crosscoop.errors import CrosscoopError

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "single_device")
CLASSES = ("DDPStrategy", "SingleDeviceStrategy")
IN_PROCESS = ("_spawn", "_fork", "_notebook")
"""Suffixes of the DDP strategies that start processes from a notebook."""

REFUSED = {
    "LearningRateFinder": "it sets a single rate on the task, but the optimizer has one per group. Try a few values of "
    "--model.optimizer.lr with a small --trainer.max_steps, or compare them with crosscoop ablate.",
    "BatchSizeFinder": "the size that it finds is not part of the configuration, and a resumed run would not use it. "
    "Try a few values of --data.batch_size with --trainer.max_steps 5.",
    "StochasticWeightAveraging": "it averages only after the last validation and the last checkpoint, so that no file "
    "contains the averaged weights. Use EMAWeightAveraging, or WeightAveraging for equal weights.",
}
"""Lightning's callbacks that cannot work here: why, and what to use instead."""


def check_options(config: Namespace) -> None:
    """Refuse options that cannot work, and correct how processes are started.

    Args:
        config: The configuration of a command, changed in place.

    Raises:
        CrosscoopError: An option cannot work.
    """
    trainer = config.trainer
    if trainer.val_check_interval == 0:  # Lightning would divide by it
        raise CrosscoopError("trainer.val_check_interval: got 0, expected a number of batches, a fraction, or null.")
    _check_strategy(trainer)
    _check_devices(trainer.accelerator, trainer.devices)
    for name, options in components(trainer.callbacks):
        if reason := REFUSED.get(name):
            raise CrosscoopError(f"trainer.callbacks: {name} is not supported: {reason}")
        _check_mode(f"trainer.callbacks ({name})", options)
    for name, options in components(config.get("model.scheduler")):
        _check_mode(f"model.scheduler ({name})", options)
    _check_mode("checkpoint", config.get("checkpoint") or {})


def components(given: Any) -> Iterator[tuple[str, Any]]:
    """Yield the class name and the options of each component that an option configures, one or a list."""
    for component in given if isinstance(given, list) else [given]:
        if isinstance(component, Namespace) and "class_path" in component:
            yield component.class_path.rpartition(".")[2], component.get("init_args") or {}


def _check_strategy(trainer: Namespace) -> None:
    given = trainer.strategy
    name = given.class_path.rpartition(".")[2] if isinstance(given, Namespace) else str(given)
    plain = name
    for ending in IN_PROCESS:
        plain = plain.replace(ending, "", 1)
    known = STRATEGIES if isinstance(given, str) else CLASSES
    ours = isinstance(given, Namespace) and not given.class_path.startswith(("pytorch_lightning.", "lightning."))
    if plain not in known and not ours:
        raise CrosscoopError(
            f"trainer.strategy: got {name}, expected {', '.join(known)}. Strategies that shard a network across "
            "devices are not supported; with these, every device holds a full copy."
        )
    if plain != name:
        trainer.strategy = plain
        rank_zero_info(f"trainer.strategy: {name} is for notebooks; using {plain}, which is otherwise the same.")
    if isinstance(given, Namespace) and given.get("init_args.start_method") in ("spawn", "fork"):
        given.init_args.start_method = "popen"


def _check_devices(accelerator: Any, devices: Any) -> None:
    gpu = torch.cuda.is_available() or (accelerator != "cuda" and torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda") and not gpu:
        raise CrosscoopError(
            f"trainer.accelerator: got {accelerator}, but torch {torch.__version__} finds no GPU here. Use cpu or "
            "auto, or install a driver and a torch build for the GPU."
        )
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not gpu)
    count = int(devices) if str(devices).lstrip("-").isdigit() else devices
    if on_cpu and not (count == "auto" or (isinstance(count, int) and count > 0)):
        raise CrosscoopError(
            f"trainer.devices: got {devices}, expected at least 1, the number of processes on the CPU."
        )


def _check_mode(option: str, options: Any) -> None:
    """Warn when a metric is monitored in the wrong direction, which would raise no error."""
    monitor, mode = str(options.get("monitor") or ""), options.get("mode")
    better = "min" if "loss" in monitor else "max" if any(word in monitor for word in ("iou", "accuracy")) else mode
    if mode in ("min", "max") and mode != better:
        rank_zero_warn(f"{option}: mode {mode} selects the worst {monitor} as the best. Set mode to {better}.")
