"""`crosscoop fit`, `validate` and `test`: Lightning's command line around crosscoop's network, task and data."""

import errno
import json
import os
import re
import shlex
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import class_from_function
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger
from pytorch_lightning.plugins import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from crosscoop.checkpoints.fits import check_fits
from crosscoop.checkpoints.read import find_checkpoint, read_checkpoint
from crosscoop.commands.options import explained, spelled, values_of
from crosscoop.data import SegmentationData
from crosscoop.data.loaders import open_data
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.files import expanded, note
from crosscoop.network.precision import note_emulated_bfloat16
from crosscoop.training.callbacks import (
    LastCheckpoint,
    NetworkSummary,
    NonFinite,
    OutputComparison,
    PredictionImages,
    Progress,
    Ranks,
    RunFolder,
    SkippedSamples,
    further_checkpoints,
)
from crosscoop.training.checkpoint_io import WholeFiles, check_room, is_whole
from crosscoop.training.lightning_fixes import (
    WithoutHyperparameters,
    defaults_of,
    give_defaults,
    plain_values,
    refused_by,
    separate_names,
    silence_advertisements,
)
from crosscoop.training.sync_batchnorm import TimmSyncBatchNorm
from crosscoop.training.task import CooperativeSegmentation
from crosscoop.training.trainer_options import check_options, components
from crosscoop.training.wandb_runs import forgive, keep_wandb_run
from crosscoop.training.weights import network_to_train

QUIET = {
    "validate": ["--verbose=false"],  # RunFolder prints the table instead
    "test": ["--verbose=false"],
}


TAKEN = ("precision", "deterministic", "limit_val_batches", "limit_test_batches", "logger")
"""Options of the trainer that `validate` and `test` take from the training."""

LEFT = {"accelerator": "auto", "devices": "auto", "strategy": "auto", "num_nodes": 1, "sync_batchnorm": False}
"""Options of the trainer that they leave, as they may run on another machine, with their defaults."""


class TrainingCLI(WithoutHyperparameters):
    """LightningCLI with the groups `network`, `model`, `data` and `trainer`, and one folder per run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the network, the run's folder and the callbacks, and link those that depend on others."""
        self.command_parser = parser
        parser.add_argument("--run", type=str, default="runs/default", help="Folder for everything the run writes.")
        parser.add_argument(
            "--resume", action="store_true", help="Resume from the run's last checkpoint, if there is one."
        )
        parser.add_class_arguments(class_from_function(network_to_train), "network", sub_configs=True)
        parser.add_class_arguments(Inference, "inference", sub_configs=True)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last")
        parser.add_lightning_class_args(NonFinite, "nonfinite")
        parser.add_lightning_class_args(PredictionImages, "pictures")
        parser.add_lightning_class_args(OutputComparison, "comparison")
        parser.link_arguments("data.dataset.num_classes", "network.num_classes", apply_on="instantiate")
        parser.link_arguments("data.dataset.class_names", "network.class_names", apply_on="instantiate")
        parser.link_arguments("data.dataset.class_names", "model.class_names", apply_on="instantiate")
        parser.link_arguments("network", "model.network", apply_on="instantiate")
        parser.link_arguments("inference", "model.inference", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults(
            {
                "trainer.logger": False,
                "trainer.max_epochs": 50,
                "checkpoint.monitor": "val/miou",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the checkpoint before Lightning does, which would fail with a stack trace or fetch a URL."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise CrosscoopError(explained(error, args[0], self.command_parser)) from error
        command = self.config.subcommand
        config = expanded(self.config[command])
        for name, default in defaults_of(self, command).items():
            if default is not None and config.get(name) is None:  # a section whose options are all commented out
                config[name] = default
        if not 0 <= int(config.seed_everything) < 2**32:
            raise CrosscoopError(f"seed_everything: got {config.seed_everything}, expected 0 to 4294967295.")
        if checkpoint := config.get("ckpt_path"):
            read_checkpoint(checkpoint)

    def before_instantiate_classes(self) -> None:
        """Set every part's path in the run's folder."""
        config = self.config[self.subcommand]
        run = Path(config.run)
        check_options(config)
        make_absolute(config.data)
        given = plain_values(self, str(self.subcommand), config)  # before the paths are set
        if self.subcommand == "fit":  # in config.yaml they would override those of later calls
            del given["ckpt_path"], given["resume"]
        self.given = given
        self.save_config_callback = lambda *_: RunFolder(given)  # type: ignore[assignment]
        keep_wandb_run(config, run, again=self.subcommand != "fit" or config.resume)
        if self.subcommand == "fit":
            if getattr(rank_zero_only, "rank", 0) == 0:
                check_room(run, 0)
            requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0  # the same command again
            if (run / "last.ckpt").exists() and not (config.resume or requeued or config.ckpt_path):
                raise CrosscoopError(
                    f"{run} already contains a run. Add --resume to resume it, or give another folder with --run."
                )
            if config.resume or (requeued and not config.ckpt_path):
                config.ckpt_path = newest_whole(run) or config.ckpt_path
        if config.ckpt_path or self.subcommand != "fit":  # the checkpoint contains all weights
            config.network.pretrained, config.network.weights = False, None
        config.trainer.default_root_dir = str(run)
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(run)
        further = further_checkpoints(config.checkpoint)
        self.trainer_defaults["callbacks"] = [SkippedSamples(), *further]
        if config.trainer.enable_model_summary is not False and not config.trainer.barebones:
            self.trainer_defaults["callbacks"].append(NetworkSummary(config.data.crop_size))
        config.trainer.enable_model_summary = False  # NetworkSummary replaces it
        for name, options in components(config.trainer.logger):
            if name == "MLFlowLogger" and not (options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
                run.mkdir(parents=True, exist_ok=True)
                options.tracking_uri = f"sqlite:///{run.absolute()}/mlflow.db"  # MLflow 3 refuses plain files
                options.artifact_location = options.artifact_location or str(run.absolute() / "mlruns")
            for place in {"save_dir", "root_dir"}.intersection(vars(options) if options else ()):
                if options[place] in (None, "", ".", "./mlruns"):  # the loggers' defaults
                    options[place] = str(run / (options[place] or ""))
        if config.trainer.sync_batchnorm:
            config.trainer.sync_batchnorm = False
            plugins = config.trainer.plugins or []
            config.trainer.plugins = [*(plugins if isinstance(plugins, list) else [plugins]), TimmSyncBatchNorm()]

    def instantiate_classes(self) -> None:
        """Look for the data before weights are downloaded, and for the checkpoint's fit before Lightning loads it."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            data = open_data(self.given)
            train, val, test = data.dataset.train_split, data.dataset.val_split, data.dataset.test_split
            data.look_up(*{"fit": (train, val), "validate": (val,), "test": (test,)}[str(self.subcommand)])
        super().instantiate_classes()
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint:
            names = self.datamodule.dataset.class_names
            check_fits(checkpoint, self.given, names, self.model.state_dict(), self.subcommand == "fit")

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Return the trainer, which writes checkpoints atomically."""
        trainer = super().instantiate_trainer(**options)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()
        chosen = [name for name, _ in components(self.config[self.subcommand].trainer.callbacks)]
        if "RichProgressBar" not in chosen:  # Lightning's default, where a user has not chosen it
            trainer.callbacks = [Progress() if type(each) is RichProgressBar else each for each in trainer.callbacks]  # type: ignore[attr-defined]
        # LastCheckpoint comes last: its file records the states of the other checkpoint callbacks.
        trainer.callbacks.sort(key=lambda callback: isinstance(callback, LastCheckpoint))  # type: ignore[attr-defined]
        note_emulated_bfloat16(str(trainer.precision), trainer.strategy.root_device)
        trainer.callbacks.append(Ranks(trainer))  # type: ignore[attr-defined]  # last, as it may raise
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                forgive(logger)
            if isinstance(logger, MLFlowLogger):
                separate_names(logger)
        return trainer


def make_absolute(data: Namespace) -> None:
    """Make the folders of the data absolute, so that the run's configuration works from any folder.

    Args:
        data: The options of `SegmentationData`, changed in place.
    """
    for options, key in ((data.dataset.get("init_args") or {}, "root"), (data, "prepared"), (data, "unlabelled")):
        given = options.get(key)
        if isinstance(given, str) and (key != "unlabelled" or Path(given).exists()):
            options[key] = str(Path(given).expanduser().absolute())


def newest_whole(run: Path) -> str | None:
    """Return the checkpoint to resume from; None if there is none.

    Raises:
        CrosscoopError: There are checkpoints, and all are incomplete.
    """
    checkpoints = [path for name in ("last.ckpt", "best.ckpt") if (path := run / name).exists()]
    for path in checkpoints:
        if is_whole(path):
            return str(path)
        print(f"{path} is incomplete: skipping it.", file=sys.stderr)
    if checkpoints:
        raise CrosscoopError(
            f"{run}: got only incomplete checkpoints, expected one to resume from. Give another with --ckpt_path."
        )
    return None


def main(arguments: Sequence[str]) -> None:
    """Run one of Lightning's commands.

    Args:
        arguments: The command and its options.
    """
    command, *options = arguments
    options = [spelled(option, "_") for option in options]  # --ckpt-path as in other commands
    silence_advertisements()
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")  # Lightning's, about torch
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")  # supported here
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # the process's own, plus a config
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging interval"
    )  # see task
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it contains config.yaml

    warnings.filterwarnings("ignore", r"\s*(Dump of a value that does not round-trip|Instantiating a subclass spec)")

    give_defaults()

    class OneCommand(TrainingCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:  # the options of all three take a second to set up
            return {command: WithoutHyperparameters.subcommands()[command]}

    try:
        OneCommand(
            CooperativeSegmentation,
            SegmentationData,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
            args=[command, *QUIET.get(command, []), *remembered(command, options), *options],
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        where = error.filename or "a file"
        raise CrosscoopError(
            f"{where} could not be written: {error.strerror}. Free disk space, then add --resume."
        ) from error
    except CrosscoopError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # jsonargparse wraps what the constructor of a component raises
            cause = cause.__cause__
        if isinstance(cause, ModuleNotFoundError):
            raise CrosscoopError(f"{cause}. For the loggers: pip install 'crosscoop[wandb,tensorboard]'") from error
        if isinstance(cause, CrosscoopError):
            raise cause from error
        if lacking := re.match(r'"(\w+)" not implemented for \'(\w+)\'', str(cause)):
            raise CrosscoopError(
                f"trainer.precision: this device cannot compute {lacking[1]} in {lacking[2]}. Use bf16-true, "
                "bf16-mixed or 32-true."
            ) from error
        library = refused_by(cause)
        if library is None:
            raise
        raise CrosscoopError(
            f"{library} rejected an option: {' '.join(str(cause).split())} Correct the option."
        ) from error


def remembered(command: str, options: Sequence[str]) -> list[str]:
    """Return the configuration stored in a run or checkpoint, for a command without --config.

    It precedes the user's options, which therefore override it.
    """
    given = values_of(options)
    run, checkpoint = given.get("--run"), given.get("--ckpt_path")
    brought: list[str] = []
    if command == "fit":
        if "--resume" in given and "--config" not in given and run and (Path(run) / "config.yaml").is_file():
            brought += ["--config", str(Path(run) / "config.yaml")]
        return brought
    if "--help" in given or "--print_config" in given or "-h" in options:
        return brought
    if checkpoint is None:
        if run is None:
            raise CrosscoopError(
                f"{command} needs a checkpoint: give --run FOLDER (uses its best.ckpt) or --ckpt_path FILE."
            )
        checkpoint = str(find_checkpoint(None, run))
        brought += ["--ckpt_path", checkpoint]
    if run is None:
        brought += ["--run", str(Path(checkpoint).parent)]
    if "--config" not in given:
        config = read_checkpoint(checkpoint)["crosscoop"]["config"]
        kept = {
            key: config[key] for key in ("seed_everything", "network", "model", "data", "inference") if key in config
        }
        trainer = config.get("trainer") or {}
        taken = {key: trainer[key] for key in TAKEN if trainer.get(key) not in (None, False)}
        brought += ["--config", yaml.safe_dump({**kept, "trainer": taken})]
        left = {key: trainer[key] for key, default in LEFT.items() if trainer.get(key, default) != default}
        if left := {key: value for key, value in left.items() if f"--trainer.{key}" not in given}:
            options_left = " ".join(f"--trainer.{key} {shlex.quote(_text(value))}" for key, value in left.items())
            note(f"{command} does not take these options of the training; to use them again, add {options_left}")
    return brought


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
