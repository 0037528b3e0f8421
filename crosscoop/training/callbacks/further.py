"""The checkpoints that are kept beside the best one."""

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint


class FurtherCheckpoints(ModelCheckpoint):
    """Keeps checkpoints under names of their own; the class gives them a record of their own in each checkpoint."""


def further_checkpoints(options: Namespace) -> list[ModelCheckpoint]:
    """Return what keeps the checkpoints that the options ask for beside `best.ckpt`.

    Args:
        options: Those of `ModelCheckpoint`; changed to keep the best checkpoint alone, as `best.ckpt`.
    """
    wanted = dict(vars(options))
    if wanted["save_top_k"] in (0, 1) and wanted["filename"] == "best":
        return []
    options.save_top_k, options.filename = 1, "best"
    if wanted["filename"] == "best":
        wanted["filename"] = "{epoch}-{step}"
    return [FurtherCheckpoints(**wanted | {"save_last": None})]
