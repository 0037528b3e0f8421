"""Weights & Biases runs: if server, key or process fails, training continues and the run stays on disk."""

import os
import secrets
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from crosscoop.errors import CrosscoopError
from crosscoop.training.lightning_fixes import keep_wandb_on_disk, leave_wandb, wandb_has_begun


class WatchGradients(pl.Callback):
    """Histograms of the gradients in Weights & Biases, by `wandb.watch`.

    Args:
        log: gradients, parameters or all.
        log_freq: Steps between two histograms.
    """

    def __init__(self, log: Literal["gradients", "parameters", "all"] = "gradients", log_freq: int = 100) -> None:
        self.kind, self.log_freq = log, log_freq  # Lightning gives callbacks its own `log`

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the network.

        Raises:
            CrosscoopError: W&B is not a logger of this run.
        """
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers:
            raise CrosscoopError(
                "trainer.callbacks: got WatchGradients without W&B, expected a WandbLogger. Add --trainer.logger "
                "WandbLogger, or leave out the callback."
            )
        for logger in loggers:
            logger.watch(pl_module, log=self.kind, log_freq=self.log_freq, log_graph=False)


def keep_wandb_run(config: Namespace, run: Path, again: bool) -> None:
    """Give W&B's run an id that later commands reuse, and make it offline if the server or the key is missing.

    Args:
        config: The configuration, changed in place.
        run: The run's folder.
        again: Whether to reuse the id of an earlier command.
    """
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    for logger in loggers:
        if not (isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger")):
            continue
        options = logger.init_args
        if not (options.get("id") or options.get("version")):
            record = run / "wandb.id"
            if again and record.is_file():
                options.id = record.read_text().strip()
            else:
                options.id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # the former in a sweep
                if getattr(rank_zero_only, "rank", 0) == 0:
                    record.parent.mkdir(parents=True, exist_ok=True)
                    record.write_text(options.id + "\n")
        if not options.get("offline") and (reason := unreachable()):
            without = " without the checkpoints (log_model)" if options.get("log_model") else ""
            options.offline, options.log_model = True, False  # Lightning refuses both
            if getattr(rank_zero_only, "rank", 0) == 0:
                given = options.get("save_dir")
                where = shlex.quote(str((run if given in (None, "", ".") else Path(given)) / "wandb"))
                what = f"The run is kept on disk{without}; upload it with: wandb sync {where}/offline-run-*"
                print(f"W&B: {reason}. {what}")


def unreachable() -> str | None:
    """Return why W&B cannot be reached; None if it can, or if WANDB_MODE is set."""
    if os.environ.get("WANDB_MODE"):
        return None
    try:
        import wandb
    except ImportError:
        return None  # the logger reports it
    address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        urllib.request.urlopen(address, timeout=5).close()  # through the environment's proxies
    except urllib.error.HTTPError:
        pass  # the server responds
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached ({error})"
    key = wandb.api.api_key
    leave_wandb()  # which has now read the environment, before Lightning makes the run offline there
    return None if key else "no API key (WANDB_API_KEY, or wandb login)"


def forgive(logger: WandbLogger) -> None:
    """Turn errors of a logger's calls into warnings; stop calling it if its run cannot start or its process dies."""
    dead: list[Exception] = []

    def forgiving(call: Callable[..., None]) -> Callable[..., None]:
        def forgiven(*arguments: object, **options: object) -> None:
            if dead:
                return
            try:
                call(*arguments, **options)
            except Exception as error:
                what = f"W&B failed ({type(error).__name__}: {error}); training continues"
                if not wandb_has_begun(logger):
                    dead.append(error)
                    rank_zero_warn(f"{what} without it.")
                elif isinstance(error, OSError):  # a closed socket
                    dead.append(error)
                    folder = shlex.quote(str(Path(logger.experiment.dir).parent))
                    rank_zero_warn(f"{what} without it. To upload what it had logged: wandb sync {folder}")
                    leave_wandb()
                else:
                    rank_zero_warn(f"{what}.")

        return forgiven

    for method in ("log_metrics", "log_hyperparams", "log_image", "log_table", "finalize", "after_save_checkpoint"):
        setattr(logger, method, forgiving(getattr(logger, method)))
    try:
        _ = logger.experiment  # starts the run, which Lightning would do outside these calls
    except Exception as error:
        leave_wandb()
        keep_wandb_on_disk(logger)
        folder = shlex.quote(f"{logger.save_dir}/wandb")
        print(f"W&B: {error} The run is kept on disk; upload it with: wandb sync {folder}/offline-run-*")
