"""Checkpoint files that are either complete or absent."""

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
    """Atomic writing of checkpoints: to a temporary file in the same folder, renamed when every byte is on disk.

    Lightning's implementation holds the checkpoint in memory a second time, and goes through the temporary folder,
    often on another file system, from which a file cannot be moved atomically.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the existing file unchanged.

        Raises:
            CrosscoopError: The file cannot be written.
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
            os.fsync(folder)  # the new name as well
            os.close(folder)
        except (OSError, RuntimeError) as error:  # torch wraps the disk's error
            causes = (error, error.__cause__, error.__context__)
            reason = next((cause for cause in causes if isinstance(cause, OSError)), error)
            kept = "The last complete checkpoint is kept" if path.exists() else "There is no checkpoint yet"
            raise CrosscoopError(f"{path} could not be written: {reason}. {kept}. Free disk space there.") from error


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint was written completely: a zip archive's directory is its last part."""
    return path.is_file() and zipfile.is_zipfile(path)


def clean(folder: Path) -> None:
    """Remove the leftovers of killed processes: partial checkpoints, and those of Lightning's SLURM handler."""
    for leftover in (*folder.glob(".*.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")):
        leftover.unlink()


def check_room(folder: Path, size: int) -> None:
    """Refuse a folder that cannot be written to, or lacks space for `best.ckpt`, `last.ckpt` and a new one.

    Args:
        folder: The run's folder.
        size: The expected size of a checkpoint in bytes.

    Raises:
        CrosscoopError: The folder cannot be written to, or lacks space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CrosscoopError(f"--run: got {folder} ({error.strerror}), expected a writable folder.") from error
    free = shutil.disk_usage(folder)[2]
    missing = 3 - sum((folder / name).exists() for name in ("best.ckpt", "last.ckpt"))
    if free < missing * size:
        raise CrosscoopError(
            f"--run: {folder} has {free / 1e6:.0f} MB left, expected {missing * size / 1e6:.0f} MB for {missing} "
            "checkpoints. Free disk space, or give another folder."
        )
