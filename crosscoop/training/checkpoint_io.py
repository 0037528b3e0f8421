"""Checkpoint files that are whole or not there at all."""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from crosscoop.errors import CrosscoopError
from crosscoop.files import replacing


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when every byte is on the disk.

    Lightning's own way holds the checkpoint in memory a second time, and by way of the temporary folder, often another
    file system, from which nothing moves at once.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the file of that name as it is.

        Raises:
            CrosscoopError: It cannot be written.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name, too
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            causes = (error, error.__cause__, error.__context__)
            reason = next((cause for cause in causes if isinstance(cause, OSError)), error)
            kept = "The last whole checkpoint is kept" if path.exists() else "No checkpoint is left"
            raise CrosscoopError(f"{path} could not be written: {reason}. {kept}. Make room there.") from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: a zip archive's directory is its last part."""
    return path.is_file() and zipfile.is_zipfile(path)


def clean(folder: Path) -> None:
    """Remove what killed processes left: checkpoints half written, and those of Lightning's handler on SLURM."""
    for leftover in (*folder.glob(".*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")):
        leftover.unlink()


def check_room(folder: Path, size: int) -> None:
    """Refuses a folder that cannot be written to, or has no room for `best.ckpt`, `last.ckpt` and a new one.

    Args:
        folder: The run's folder.
        size: The expected size of a checkpoint in bytes.

    Raises:
        CrosscoopError: It is such a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CrosscoopError(
            f"--run: got {folder} ({error.strerror}), expected a folder that can be written to."
        ) from error
    free = shutil.disk_usage(folder)[2]
    missing = 3 - sum((folder / name).exists() for name in ("best.ckpt", "last.ckpt"))
    if free < missing * size:
        raise CrosscoopError(
            f"--run: {folder} has {free / 1e6:.0f} MB left, expected {missing * size / 1e6:.0f} MB for {missing} "
            "checkpoints. Make room, or give another folder."
        )
