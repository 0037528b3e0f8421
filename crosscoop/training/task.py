"""The Lightning module: how a cooperative network is trained and evaluated."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning
from pytorch_lightning.cli import OptimizerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from crosscoop.data.augment import cutmix
from crosscoop.data.dataset import colormap
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.boundary import BoundaryIoU  # noqa: F401  (a metric that the command line offers by name)
from crosscoop.evaluation.calibration import Calibration
from crosscoop.evaluation.cascade import CascadeRecord, CountedCascade
from crosscoop.evaluation.evaluator import Evaluator
from crosscoop.evaluation.inference import Inference, upsampled_labels
from crosscoop.evaluation.metrics import MetricFactory
from crosscoop.evaluation.scores import Scores
from crosscoop.network import CooperativeNetwork
from crosscoop.network.layers import resize_sparsely
from crosscoop.network.outputs import ALONE, CASCADE, branch_names, branches_of, main_output, output_names
from crosscoop.training.batches import Batch, to_batch
from crosscoop.training.describe import describe
from crosscoop.training.lightning_fixes import thaw_resumed, unscale_fused
from crosscoop.training.loss import CrossEntropy, Loss
from crosscoop.training.objective import Objective, Supervised
from crosscoop.training.objective.contract import check_objective, sum_losses
from crosscoop.version import __version__


class Compilation(TypedDict, total=False):
    """Options of torch.compile.

    Attributes:
        mode: How long it may search for fast kernels, and whether it records CUDA graphs.
        dynamic: True compiles one program for any size of crops and batches, false one per size; by default, the second
            size leads to a program for any size.
    """

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
    dynamic: bool | None


SchedulerFactory = Callable[[Optimizer], ReduceLROnPlateau] | Callable[[Optimizer], LRScheduler]
"""Lightning's ReduceLROnPlateau, which has a `monitor`, takes precedence over torch's class of the same name."""

SPARSE = 4
"""The validation loss is computed on every so many rows and columns: on all, it would take a fifth of a validation."""


class Poly(LambdaLR):
    """Schedule that leaves parameter groups alone if a callback adds them during training.

    torch's `PolynomialLR` would also keep the old total when a resumed run is extended.
    """

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each parameter group."""
        added = self.optimizer.param_groups[len(self.base_lrs) :]
        return [*super().get_lr(), *(group["lr"] for group in added)]


class CooperativeSegmentation(pl.LightningModule):
    """Joint training of all branches, and evaluation of each branch and their ensemble.

    `trainer.gradient_clip_val` applies to each branch separately.

    Args:
        network: The network.
        class_names: One name per class.
        optimizer: Any torch optimiser, by class path.
        poly_power: Exponent of the polynomial decay to 0 over the entire training, stepped with the optimiser.
        warmup_steps: Optimiser steps of linear warm-up before the decay.
        scheduler: Any torch schedule, by class path, instead of the polynomial decay; stepped with the optimiser.
            OneCycleLR takes its total_steps from the trainer; ReduceLROnPlateau (`monitor: val/miou, mode: max`) steps
            after each validation.
        heads_lr_multiplier: Multiplier on the learning rate of everything except the backbones.
        loss: The loss of one branch.
        objective: The objective that is optimised; it receives `loss`.
        inference: How images are evaluated; the option group `inference` of the command line.
        metrics: Metrics in addition to those of the confusion matrix, by class path: BoundaryIoU, which takes longer
            than all the others, or your own `crosscoop.SegmentationMetric`.
        alone: Also evaluate each branch without its connections, as outputs such as `bottom_alone`.
        channels_last: Use the channels-last memory layout, which is faster on CPUs and on GPUs with tensor cores.
        compile: Compile the forward pass of training with torch.compile (the first steps take minutes): true, or its
            mode and dynamic, such as {mode: max-autotune}. Evaluation is not compiled: each new image size would take
            minutes again.
    """

    def __init__(
        self,
        network: CooperativeNetwork,
        class_names: Sequence[str],
        optimizer: OptimizerCallable = lambda parameters: SGD(parameters, lr=0.007, momentum=0.9, weight_decay=1e-4),
        poly_power: float = 0.9,
        warmup_steps: int = 0,
        scheduler: SchedulerFactory = None,  # type: ignore[assignment]
        heads_lr_multiplier: float = 1.0,
        loss: Loss = CrossEntropy(),  # noqa: B008
        objective: Objective = Supervised(),  # noqa: B008
        inference: Inference = Inference(),  # noqa: B008
        metrics: Sequence[MetricFactory] = (),
        alone: bool = False,
        channels_last: bool = False,
        compile: bool | Compilation = False,
    ) -> None:
        super().__init__()
        self.network, self.class_names = network, list(class_names)
        self.run_config: dict[str, Any] | None = None
        self.frozen = network.freeze.modules(network)
        if network.freeze.epochs is None:
            nn.ModuleList(self.frozen).requires_grad_(False)
        self.objective = copy.deepcopy(objective)  # all tasks share the default object
        check_objective(self.objective, loss, network)
        self.objective.loss = loss
        self.objective.build(network, len(class_names))
        self.inference = inference
        self.optimizer = optimizer
        self.scheduler: SchedulerFactory | None = scheduler
        self.poly_power, self.warmup_steps = poly_power, warmup_steps
        self.heads_lr_multiplier = heads_lr_multiplier
        names = output_names(len(network.branches))
        self.alone = alone and len(network.branches) > 1
        if self.alone:
            names += [name + ALONE for name in branches_of(names)]
        self.cascade = CountedCascade(network) if network.cascade else None
        if self.cascade:
            names.append(CASCADE)
        self.cascade_record: CascadeRecord | None = None
        self.evaluator = Evaluator(class_names, names, metrics)
        self.calibration = nn.ModuleDict({name: Calibration() for name in names})
        self.scores: dict[str, Scores] = {}
        self.figures: dict[str, float | None] = {}
        self.num_images = 0
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
            self.objective.to(memory_format=torch.channels_last)
        self.forward_maps = network.forward_maps
        if compile is not False:
            self.forward_maps = torch.compile(network.forward_maps, **({} if compile is True else compile))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into logits `(N, num_classes, H, W)` by output name."""
        return self.network.outputs(image)

    def labels(self, image: Tensor, size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Segment `(N, 3, H, W)` RGB in [0, 1] into labels uint8 by output name, with `inference`.

        Args:
            image: The images.
            size: Height and width of the labels; None for the images' size.
        """
        outputs = self.inference(self._outputs, image)
        return {name: upsampled_labels(logits, size or image.shape[-2:]) for name, logits in outputs.items()}

    def _outputs(self, view: Tensor) -> dict[str, Tensor]:
        outputs = self.network.outputs(view, upsample=False)
        if self.alone:
            for i, name in enumerate(branches_of(list(outputs))):
                (outputs[name + ALONE],) = self.network.alone(i)(view, upsample=False)
        if self.cascade:
            outputs[CASCADE] = self.cascade(view)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the objective's losses."""
        batch = self._batch(batch)
        points, names = self.objective.points, branch_names(len(self.network.branches))
        outputs, kept = self.forward_maps(batch["image"], points)
        logits = dict(zip(names, outputs, strict=True))
        self._check_classes(logits)
        given: dict[str, Any] = {}
        if points:
            given["maps"] = {point: {names[i]: each for i, each in own.items()} for point, own in kept.items()}
        if self.objective.teachers:
            given["teachers"] = self._teach(batch) or {name: each.detach() for name, each in logits.items()}
        losses = self.objective(logits, batch["mask"], **given)
        loss = sum_losses(self.objective, losses)
        self.log("train/loss", loss, prog_bar=True)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            self.log(f"lr/{group.get('name', 'thawed')}", group["lr"])
        for name, each in losses.items():
            self.log(f"train/loss/{name}", each)
        return loss

    @torch.no_grad()
    def _teach(self, batch: Batch) -> dict[str, Tensor]:
        """Return each branch's logits of the weak views, for the pixels of the images; empty if there are none."""
        if "weak" not in batch:
            return {}
        logits = self.network(batch["weak"])
        if "box" in batch:
            logits = [cutmix(each, batch["box"]) for each in logits]
        return dict(zip(branch_names(len(logits)), logits, strict=True))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update every output's metrics, and each branch's loss, `model.loss` on every fourth row and column."""
        batch = self._batch(batch)
        outputs, mask = self._count(batch)[0], batch["mask"]
        step = min(SPARSE, *mask.shape[-2:])
        some = mask[:, step // 2 :: step, step // 2 :: step]
        losses = {
            name: self.objective.loss(resize_sparsely(outputs[name].float(), mask.shape[-2:], step), some)
            for name in branch_names(len(self.network.branches))
        }
        for key, loss in {"val/loss": sum(losses.values()), **{f"val/loss/{n}": e for n, e in losses.items()}}.items():
            self.log(key, loss, batch_size=len(mask), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update every output's metrics; return the labels `(N, H, W)` by output name, for the callbacks."""
        batch = self._batch(batch)
        outputs, labels = self._count(batch)
        for name, logits in outputs.items():
            cast(Calibration, self.calibration[name]).update(logits, batch["mask"])
        return labels

    def on_validation_epoch_end(self) -> None:
        """Compute the epoch's metrics."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Compute the split's metrics."""
        self._score("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, with backbones and heads as named groups, and its schedule."""
        backbones = {id(p) for branch in self.network.branches for p in branch.backbone.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "heads": []}
        for parameter in [*self.network.parameters(), *self.objective.parameters()]:
            if not parameter.requires_grad:  # BackboneFinetuning adds it when it unfreezes
                continue
            groups["backbone" if id(parameter) in backbones else "heads"].append(parameter)
        try:
            optimizer = self.optimizer([{"params": group, "name": name} for name, group in groups.items()])
        except (TypeError, ValueError) as error:
            raise CrosscoopError(f"model.optimizer: {error}. Correct its options.") from error
        optimizer.param_groups[1]["lr"] *= self.heads_lr_multiplier
        if self._thaws and self.trainer.world_size > 1:  # DDP does not average what is frozen at its start
            raise CrosscoopError(
                f"trainer.callbacks: parameters unfrozen during training drift apart on {self.trainer.world_size} "
                "devices (https://github.com/Lightning-AI/pytorch-lightning/issues/20340). Train on one device, or "
                "leave out the finetuning callback."
            )
        scheduler = self._schedule(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):  # steps after a validation
            every = self.trainer.check_val_every_n_epoch or 1
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor, "frequency": every},
            }
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each branch separately, then the exchanges: unconnected branches train as if alone."""
        if not gradient_clip_val:
            return
        own = {id(p): i for i, branch in enumerate(self.network.branches) for p in branch.parameters()}
        for i, name in enumerate(branch_names(len(self.network.branches))):
            own |= {id(p): i for p in self.objective.branch_parameters(name)}
        parts: dict[int, list[Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parts.setdefault(own.get(id(parameter), -1), []).append(parameter)
        unscale_fused(self.trainer, optimizer)
        clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
        for part in parts.values():
            clip(part, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to the checkpoint what is needed to use it on its own: configuration, classes and colours."""
        dataset = getattr(getattr(self.trainer, "datamodule", None), "dataset", None)
        palette = colormap(len(self.class_names)) if dataset is None else dataset.palette
        checkpoint["crosscoop"] = {
            "version": __version__,
            "config": self.run_config or describe(self.network, getattr(self.trainer, "datamodule", None)),
            "class_names": self.class_names,
            "palette": [list(map(int, color)) for color in palette],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Ignore the checkpoint's objective in an evaluation, where it may differ."""
        if self.trainer.state.fn != "fit":
            mine, stored = self.state_dict(), checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                **{key: value for key, value in stored.items() if not key.startswith("objective.")},
                **{key: value for key, value in mine.items() if key.startswith("objective.")},
            }

    def on_train_start(self) -> None:
        """Unfreeze again what was unfrozen before an interruption, and log at least once per epoch."""
        thaw_resumed(self.trainer)
        self.on_train_epoch_start()  # a run resumed within an epoch does not start the epoch again
        steps = int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches
        self.trainer.log_every_n_steps = min(self.trainer.log_every_n_steps, max(steps, 1))  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        """Freeze the parts that do not train yet, with their batch norm; Lightning has put them into training mode."""
        frozen = self._is_frozen()
        for part in self.frozen:
            if frozen or self.current_epoch == self.network.freeze.epochs:
                part.train(not frozen)
            if self.network.freeze.epochs is not None and self.trainer.world_size == 1:
                part.requires_grad_(not frozen)

    def on_after_backward(self) -> None:
        """Drop the gradients of parts that do not train yet: DDP averages all those that it has found at its start."""
        if self.network.freeze.epochs is not None and self._is_frozen():
            for parameter in nn.ModuleList(self.frozen).parameters():
                parameter.grad = None

    def _is_frozen(self) -> bool:
        epochs = self.network.freeze.epochs
        return epochs is None or self.current_epoch < epochs

    def _batch(self, batch: Any) -> Batch:
        """Return a batch as the network receives it; those of `SegmentationData` already are."""
        ours = isinstance(batch, dict) and "name" in batch
        return batch if ours else to_batch(batch, len(self.class_names))

    def _check_classes(self, logits: Mapping[str, Tensor]) -> None:
        for name, each in logits.items():
            if each.shape[1] != len(self.class_names):
                raise CrosscoopError(
                    f"model.class_names: got {len(self.class_names)} names, but {each.shape[1]} channels of logits "
                    f"from {name}; expected one per class. Create the network with num_classes={len(self.class_names)}."
                )

    @property
    def _thaws(self) -> bool:
        return any(isinstance(callback, BaseFinetuning) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]

    @property
    def backbone(self) -> nn.ModuleList:
        """The branches' backbones, for Lightning's `BackboneFinetuning`."""
        return nn.ModuleList(branch.backbone for branch in self.network.branches)

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        if self.scheduler is not None:
            return self._given_schedule(self.scheduler, optimizer)
        decay = max(self._last_step("The polynomial decay") - self.warmup_steps, 1)

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            return float(max(1 - (step - self.warmup_steps) / decay, 0) ** self.poly_power)

        return Poly(optimizer, factor)

    def _given_schedule(self, make: Callable[..., LRScheduler], optimizer: Optimizer) -> LRScheduler:
        if self._thaws:
            raise CrosscoopError(
                "model.scheduler: torch's schedules do not support parameters unfrozen during training. Leave it out "
                "to use the polynomial decay, or leave out the finetuning callback."
            )
        try:
            try:
                scheduler = make(optimizer)
            except ValueError as error:
                if "total_steps" not in str(error):
                    raise
                scheduler = make(optimizer, total_steps=self._last_step("OneCycleLR"))
        except (TypeError, ValueError) as error:
            raise CrosscoopError(f"model.scheduler: {error}. Correct its options.") from error
        if isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau) and not isinstance(scheduler, ReduceLROnPlateau):
            raise CrosscoopError(
                "model.scheduler: torch's ReduceLROnPlateau has no option for what to monitor. Use Lightning's "
                "ReduceLROnPlateau with --model.scheduler.monitor val/miou --model.scheduler.mode max."
            )
        total = self.trainer.estimated_stepping_batches
        if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < total:
            raise CrosscoopError(
                f"model.scheduler.total_steps: got {scheduler.total_steps}, expected at least the run's {total} steps. "
                "Leave it out to take it from the trainer."
            )
        return scheduler

    def _last_step(self, what: str) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise CrosscoopError(
                f"{what} requires the number of steps: got neither trainer.max_epochs nor trainer.max_steps. Set one "
                "of them, or another model.scheduler."
            )
        return int(total)

    def _count(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Update the metrics, and return logits and labels by output name."""
        outputs = self.inference(self._outputs, batch["image"])
        self._check_classes(outputs)
        labels = {name: upsampled_labels(logits, batch["mask"].shape[-2:]) for name, logits in outputs.items()}
        self.evaluator.update(labels, batch["mask"])
        return outputs, labels

    def _score(self, stage: str) -> None:
        """Log every output's metrics as `stage/miou/OUTPUT`, the main one's also as `stage/miou` and `stage/iou/CLASS`.

        `figures` has them without those per class.
        """
        self.num_images, self.scores = self.evaluator.num_images(), self.evaluator.compute()
        self.evaluator.reset()
        self.cascade_record = self.cascade.record() if self.cascade else None
        main = self.scores[main_output(self.scores)]
        self.figures = {f"{stage}/{figure}": value for figure, value in main.headline.items()}
        for name, scores in self.scores.items():
            self.figures |= {f"{stage}/{figure}/{name}": value for figure, value in scores.headline.items()}
        logged = dict(self.figures)
        for figure, classes in main.per_class.items():
            logged |= {f"{stage}/{figure}/{name}": value for name, value in classes.items()}
        for key, value in logged.items():
            if value is not None:  # already equal on all ranks
                self.log(key, value, prog_bar=key == f"{stage}/miou", sync_dist=True)
