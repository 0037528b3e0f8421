"""The checkpoints kept in addition to the best one."""

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint


class FurtherCheckpoints(ModelCheckpoint):
    """Checkpoints under other names; as a class of its own, it has its own state in each checkpoint."""


def further_checkpoints(options: Namespace) -> list[ModelCheckpoint]:
    """Return callbacks for the checkpoints that the options request in addition to `best.ckpt`.

    Args:
        options: Options of `ModelCheckpoint`; changed to keep only the best checkpoint, as `best.ckpt`.
    """
    wanted = dict(vars(options))
    if wanted["save_top_k"] in (0, 1) and wanted["filename"] == "best":
        return []
    options.save_top_k, options.filename = 1, "best"
    if wanted["filename"] == "best":
        wanted["filename"] = "{epoch}-{step}"
    return [FurtherCheckpoints(**wanted | {"save_last": None})]
