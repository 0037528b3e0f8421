"""Part "fast": seconds, memory and shares of training, inference, evaluation and input, arm against arm."""

import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.record import Clock, Entry, Record
from benchmarks.inference import realistic
from benchmarks.measure import Setting, Work, in_turn
from crosscoop.commands.prepare_data import prepare_data
from crosscoop.data import SegmentationData
from crosscoop.data.dataset import colormap
from crosscoop.evaluation.inference import upsampled_labels
from crosscoop.network import create_network
from crosscoop.prediction.predictor import Predictor
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.task import CooperativeSegmentation

PAIR = ["xception65", "resnet101"]
TINY = ["test_resnet", "test_byobnet"]
CLASSES = 21


@dataclass
class Arms:
    """Alternatives that are measured alternately, and what they need.

    Attributes:
        setting: The setting.
        items: Images per run.
        entry: What was found, by the arm's name.
        works: The arms.
    """

    setting: Setting
    items: int
    entry: Entry = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Work], warm_up: int = 2, flops: float = 0.0) -> None:
        """Create an arm, run it, and measure the memory that it adds at its peak.

        Args:
            name: Its name.
            make: Creates it.
            warm_up: How often it runs before the measurement.
            flops: Floating-point operations of a run.
        """
        cuda = self.setting.device == "cuda"
        before = torch.cuda.memory_allocated() if cuda else 0
        work = make()
        for _ in range(warm_up):
            work()
        self.entry[name] = {"flops": flops}
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            work()
            self.entry[name]["MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        self.works[name] = work

    def measure(self, repeats: int = 9) -> Entry:
        """Measure all arms in turn, and return what was found."""
        times = in_turn(list(self.works.values()), self.setting.pick(2, repeats), self.setting.device)
        for name, seconds in zip(self.works, times, strict=True):
            median = statistics.median(seconds)
            rates = {"images_per_second": self.items / median, "tflops": self.entry[name].pop("flops") / median / 1e12}
            self.entry[name] |= {"seconds": seconds, "median": median, **rates}
        return self.entry


def wall(device: str) -> float:
    """Return a time in seconds, after the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# -- the machine


def matrix_rate(setting: Setting) -> Entry:
    """Measure the rate of a bfloat16 matrix product and of a copy: the ceilings of everything else."""
    side = setting.pick(256, 8192)
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(setting.pick(2**20, 2**30), device=setting.device)
    target = torch.empty_like(source)
    arms = Arms(setting, 1)
    arms.add("matrix product", lambda: lambda: a @ b, 3, 2 * side**3)
    arms.add("copy", lambda: lambda: target.copy_(source), 3)
    entry = arms.measure(15)
    entry["copy"]["TB_per_second"] = 2 * source.nbytes / entry["copy"]["median"] / 1e12
    return entry


# -- training


def networks(setting: Setting, strategy: str | None, separable: bool = True, branches: Any = None) -> list[nn.Module]:
    """Create our pair as one network; with strategy None, two networks of segmentation-models-pytorch."""
    branches = branches or setting.pick(TINY, PAIR)
    if strategy is None:
        from benchmarks.training import smp

        return smp(branches, CLASSES)
    return [create_network(branches, CLASSES, strategy=strategy, separable=separable)]


def step(
    setting: Setting,
    make: Callable[[], list[nn.Module]],
    batch: int,
    size: int,
    *,
    channels_last: bool = False,
    fused: bool = False,
    benchmark: bool = False,
    compiled: bool = False,
) -> Callable[[], Work]:
    """Return what creates a training step: networks in turn, cross entropy, backward pass and SGD, under bfloat16.

    Args:
        setting: The setting.
        make: Creates the networks.
        batch: Images of a step.
        size: Their side.
        channels_last: Memory layout of the networks.
        fused: SGD in one kernel.
        benchmark: Let cuDNN search for the fastest kernels, as `trainer.benchmark` does.
        compiled: Compile the forward passes, and with them the backward passes.
    """

    def create() -> Work:
        torch.manual_seed(0)
        device = setting.device
        layout = torch.channels_last if channels_last else torch.contiguous_format
        image = torch.rand(batch, 3, size, size, device=device)
        mask = torch.randint(CLASSES, (batch, size, size), device=device)
        loss, parts = CrossEntropy(), []
        with torch.device(device):  # where initial weights are drawn faster
            created = make()
        for network in created:
            network.to(memory_format=layout).train()
            forward = torch.compile(network, backend=backend(setting)) if compiled else network
            optimizer = SGD(network.parameters(), lr=0.007, momentum=0.9, weight_decay=1e-4, fused=fused or None)
            parts.append((forward, optimizer))

        def work() -> None:
            torch.backends.cudnn.benchmark = benchmark
            for forward, optimizer in parts:
                optimizer.zero_grad()
                with torch.autocast(device, torch.bfloat16):
                    outputs = forward(image)
                    losses = [loss(each, mask) for each in (outputs if isinstance(outputs, list) else [outputs])]
                sum(losses[1:], losses[0]).backward()
                optimizer.step()

        return work

    return create


def backend(setting: Setting) -> str:
    """Return what compiles: in a rehearsal, only the tracing of the graph is tried."""
    return "aot_eager" if setting.quick else "inductor"


def flops(make: Callable[[], list[nn.Module]], batch: int, size: int) -> float:
    """Return the floating-point operations of a training step's convolutions, three times those of its forward pass."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        for network in make():
            network.eval()(torch.empty(1, 3, size, size))
    return 3.0 * batch * counter.get_total_flops()


def training(setting: Setting, batch: int) -> Entry:
    """Measure our ways of training against each other and, where it is installed, against smp's two networks."""
    batch, size, other = setting.pick((2, 65, 64), (batch, 513, 512))  # smp requires multiples of 16
    arms = Arms(setting, batch)

    def add(name: str, strategy: str | None, separable: bool = True, **options: bool) -> None:
        side = size if strategy else other

        def make() -> list[nn.Module]:
            return networks(setting, strategy, separable)

        arms.add(name, step(setting, make, batch, side, **options), flops=flops(make, batch, side))

    add("cross_c1_c2", "cross_c1_c2", separable=False)
    add("none", "none", separable=False)
    add("cross_c1_c2, channels-last, fused", "cross_c1_c2", separable=False, channels_last=True, fused=True)
    add("separable", "cross_c1_c2")
    add("separable, channels-last", "cross_c1_c2", channels_last=True)
    add("separable, channels-last, fused", "cross_c1_c2", channels_last=True, fused=True)
    add("separable, channels-last, fused, benchmark", "cross_c1_c2", channels_last=True, fused=True, benchmark=True)
    if find_spec("segmentation_models_pytorch"):
        add("smp", None)
        add("smp, channels-last", None, channels_last=True)
    return arms.measure(7)


def layouts(setting: Setting) -> Entry:
    """Measure each network alone in both layouts: grouped convolutions may lose in channels-last."""
    batch, size = setting.pick((2, 65), (16, 513))
    arms = Arms(setting, batch)
    for name in setting.pick(TINY, PAIR):
        for channels_last in (False, True):
            make = step(
                setting,
                lambda n=name: networks(setting, "none", branches=[n]),
                batch,
                size,
                channels_last=channels_last,
            )
            arms.add(f"{name}{', channels-last' * channels_last}", make)
    return arms.measure(5)


def shares(setting: Setting) -> Entry:
    """Measure what backbones, heads, exchanges and optimiser take of a step, and which operations take its time."""
    batch, size = setting.pick((2, 65), (16, 513))
    arms, device = Arms(setting, batch), setting.device
    image = torch.rand(batch, 3, size, size, device=device)

    def passes(strategy: str, whole: bool) -> Callable[[], Work]:
        def create() -> Work:
            (network,) = networks(setting, strategy, separable=False)
            network.to(device, memory_format=torch.channels_last).train()

            def work() -> None:
                network.zero_grad()
                with torch.autocast(device, torch.bfloat16):
                    if whole:
                        outputs = network(image)
                    else:
                        outputs = [each for branch in network.branches for each in branch.backbone(image)]
                sum(each.float().mean() for each in outputs).backward()

            return work

        return create

    arms.add("backbones", passes("none", whole=False))
    arms.add("none", passes("none", whole=True))
    arms.add("cross_c1_c2", passes("cross_c1_c2", whole=True))
    for fused in (False, True):

        def update(fused: bool = fused) -> Work:
            parameters = [
                p for network in networks(setting, "cross_c1_c2", False) for p in network.to(device).parameters()
            ]
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            return SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=fused or None).step

        arms.add(f"optimiser{', fused' * fused}", update)
    entry = arms.measure(5)
    entry["operations"] = operations(setting, arms.works["cross_c1_c2"])
    return entry


def operations(setting: Setting, work: Work) -> dict[str, float]:
    """Return the share of each operation in the device's time of a run, largest first."""
    cuda = setting.device == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profile:
        work()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {event.key: getattr(event, key) for event in profile.key_averages()}
    if cuda:  # an operation's entry includes its kernels, which have entries of their own
        times = {name: time for name, time in times.items() if name.startswith("aten::")}
    total = sum(times.values()) or 1
    largest = sorted(times.items(), key=lambda item: -item[1])[:20]
    return {name: time / total for name, time in largest}


def compiled_training(setting: Setting) -> Entry:
    """Measure a compiled step against the eager one, and against smp's two networks in Lightning's defaults."""
    batch, size, other = setting.pick((2, 65, 64), (16, 513, 512))
    arms = Arms(setting, batch)

    def ours() -> list[nn.Module]:
        return networks(setting, "cross_c1_c2")

    fast = {"channels_last": True, "fused": True}
    arms.add("separable, channels-last, fused", step(setting, ours, batch, size, **fast))
    if find_spec("segmentation_models_pytorch"):
        arms.add("smp", step(setting, lambda: networks(setting, None), batch, other))
    began = wall(setting.device)
    arms.add("separable, channels-last, fused, compiled", step(setting, ours, batch, size, compiled=True, **fast))
    compilation = wall(setting.device) - began
    return arms.measure(7) | {"compilation": {"seconds": [compilation]}}


# -- inference


def inference(
    setting: Setting, height: int, width: int, batch: int = 1, compiled: bool = False, graph: bool = False
) -> Entry:
    """Measure from bytes on the device to the ensemble's labels at full size.

    Args:
        setting: The setting.
        height: The images' height.
        width: The images' width.
        batch: Images at once.
        compiled: Compile the fast network.
        graph: Record its kernels as a CUDA graph; on a CPU, run it once more.
    """
    height, width = setting.pick((33, 49), (height, width))
    arms, device = Arms(setting, batch), setting.device
    image = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, device=device)
    (network,) = networks(setting, "cross_c1_c2")
    network = realistic(network, setting)
    names, palette = [str(i) for i in range(CLASSES)], list(colormap(CLASSES))
    fast = Predictor(network, names, palette, device=device, fast=True)

    @torch.inference_mode()
    def labels(predictor: Predictor) -> Tensor:
        return upsampled_labels(predictor.logits(image)["ensemble"], (height, width))

    if compiled:
        arms.add("fast", lambda: lambda: labels(fast))
        began = wall(device)
        quick = Predictor(network, names, palette, device=device, fast=True)
        quick.network.forward = torch.compile(quick.network.forward, backend=backend(setting))  # type: ignore[method-assign]
        arms.add("fast, compiled", lambda: lambda: labels(quick))
        arms.entry["compilation"] = {"seconds": [wall(device) - began]}
    elif graph:
        arms.add("fast", lambda: lambda: labels(fast))
        arms.add("fast, CUDA graph", lambda: captured(lambda: labels(fast)))
    else:
        plain = Predictor(network, names, palette, device=device)
        arms.add("plain", lambda: lambda: labels(plain))
        arms.add("fast", lambda: lambda: labels(fast))
    if find_spec("segmentation_models_pytorch"):
        peers = [peer.eval().to(device) for peer in networks(setting, None)]

        @torch.inference_mode()
        def theirs(half: bool) -> Tensor:
            padded = functional.pad(image.float() / 255, (0, -width % 16, 0, -height % 16))
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = [peer(padded)[..., :height, :width] for peer in peers]
            return (logits[0] + logits[1]).argmax(1)

        arms.add("smp, bfloat16", lambda: lambda: theirs(True))
        if not (compiled or graph):
            arms.add("smp", lambda: lambda: theirs(False))
    compilation = arms.entry.pop("compilation", None)
    entry = arms.measure(15)
    return entry | ({"compilation": compilation} if compilation else {})


def captured(work: Callable[[], Tensor]) -> Work:
    """Return a work that replays the kernels of another one, without the time that Python takes to start them."""
    if not torch.cuda.is_available():
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def evaluation(setting: Setting) -> Entry:
    """Measure a step of `test` and of `validate` at Cityscapes' size against the network's forward pass alone."""
    height, width = setting.pick((64, 128), (1024, 2048))
    device, arms = setting.device, Arms(setting, 1)
    torch.manual_seed(0)
    network = create_network(setting.pick(TINY, PAIR), 19, strategy="cross_c1_c2").eval()
    task = CooperativeSegmentation(network, [str(i) for i in range(19)], channels_last=True).to(device)
    data = SegmentationData()
    given = {
        "image": torch.randint(256, (1, 3, height, width), dtype=torch.uint8, device=device),
        "mask": torch.randint(19, (1, height, width), dtype=torch.uint8, device=device),
        "name": ["some"],
    }
    image = given["image"].float() / 255

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device, torch.bfloat16):
            task.network.outputs(image, upsample=False)

    @torch.inference_mode()
    def whole(work: Callable[[Any, int], object]) -> None:
        with torch.autocast(device, torch.bfloat16):
            work(data.on_after_batch_transfer(dict(given), 0), 0)

    arms.add("forward", lambda: forward)
    arms.add("evaluation", lambda: lambda: whole(task.test_step))
    arms.add("validation, with its losses", lambda: lambda: whole(task.validation_step))
    return arms.measure(15)


# -- input


def pipeline(setting: Setting, name: str, prepared: bool) -> Entry:
    """Measure the images per second that worker processes bring to the device, from files or prepared.

    Args:
        setting: The setting.
        name: VOC or Cityscapes: the size and format of the generated files.
        prepared: Decode them beforehand, as `crosscoop prepare-data` does.
    """
    from benchmarks.pipelines import generated  # with albumentations, a competitor there

    voc, cityscapes = ((375, 500), 513, 40, 48, 16), ((1024, 2048), 768, 8, 32, 8)
    shape, crop, distinct, batches, batch = voc if name == "VOC" else cityscapes
    workers, device = setting.pick(1, min(os.cpu_count() or 1, 16)), setting.device
    if setting.quick:
        shape, crop, distinct, batches, batch = (48, 64), 32, 2, 3, 2
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        dataset = generated(files, name, shape, distinct)
        for kind in ("images", "masks"):
            for path in sorted((files / kind).iterdir()):
                for number in range(int(path.stem) + distinct, batches * batch, distinct):
                    os.link(path, path.with_name(f"{number}{path.suffix}"))
        place = str(Path(folder) / "prepared") if prepared else None
        if place:
            prepare_data(SegmentationData(dataset), place)
        data = SegmentationData(dataset, batch, num_workers=workers, crop_size=crop, prepared=place, check=False)
        loader, seconds = data.train_dataloader(), []
        for _ in range(3):  # in the first epoch the workers start
            began = wall(device)
            number = 0
            for each in loader:
                moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in each.items()}
                number += len(data.on_after_batch_transfer(moved, 0)["image"])
            seconds.append((wall(device) - began) / number)
        del loader
    median = statistics.median(seconds[1:])
    return {"input": {"seconds": seconds, "images_per_second": 1 / median, "workers": workers}}


# -- all of it

ENTRIES: dict[str, Callable[[Setting], Entry]] = {
    "matrix rate": matrix_rate,
    "training, batch 16": lambda setting: training(setting, 16),
    "inference, 513 x 513": lambda setting: inference(setting, 513, 513),
    "inference, 1024 x 2048": lambda setting: inference(setting, 1024, 2048),
    "evaluation, 1024 x 2048": evaluation,
    "compiled training, batch 16": compiled_training,
    "compiled inference, 513 x 513": lambda setting: inference(setting, 513, 513, compiled=True),
    "inference as a CUDA graph, 513 x 513": lambda setting: inference(setting, 513, 513, graph=True),
    "shares, batch 16": shares,
    "input, VOC files": lambda setting: pipeline(setting, "VOC", prepared=False),
    "input, Cityscapes prepared": lambda setting: pipeline(setting, "Cityscapes", prepared=True),
    "training, batch 6": lambda setting: training(setting, 6),
    "layouts, batch 16": layouts,
    "inference, 513 x 513, batch 8": lambda setting: inference(setting, 513, 513, 8),
    "input, Cityscapes files": lambda setting: pipeline(setting, "Cityscapes", prepared=False),
}
"""What is measured by its name, the most important first."""

COMPILED = [name for name in ENTRIES if name.startswith("compiled")]
"""Entries that take minutes of compilation; each runs in a process of its own, which can be ended."""


def run(record: Record, clock: Clock, setting: Setting, apart: Callable[[str, float], None]) -> None:
    """Measure what is missing until the time is up.

    Args:
        record: Receives the entries.
        clock: When to stop.
        setting: The setting.
        apart: Measures an entry in a process of its own, within a number of seconds.
    """
    for name in ENTRIES:
        if record.has(name) or clock.left < 15:
            continue
        if name in COMPILED:
            apart(name, clock.left)
            record.reread()
        else:
            measure(record, setting, name)


def measure(record: Record, setting: Setting, name: str) -> None:
    """Measure an entry; an error becomes part of the record."""
    began = wall("cpu")
    try:
        entry = ENTRIES[name](setting)
    except Exception as error:  # the others are still worth their time
        traceback.print_exc()
        entry = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    record.add(name, entry)
    print(f"{name}: {wall('cpu') - began:.0f} s{', failed' if 'failed' in entry else ''}", flush=True)


def table(record: Record) -> list[str]:
    """Return Markdown of all arms."""
    entries: dict[str, Any] = record.entries
    peak = entries.get("matrix rate", {}).get("matrix product", {}).get("tflops", 0)
    lines = ["| measured | arm | ms | images / s | MiB | share of the matrix rate |", "|---|---|---:|---:|---:|---:|"]
    for name, entry in entries.items():
        if "failed" in entry:
            lines.append(f"| {name} | failed: {entry['failed'].splitlines()[0]} | | | | |")
            continue
        for arm, found in entry.items():
            if arm == "operations":
                shown = ", ".join(f"{key.removeprefix('aten::')} {share:.0%}" for key, share in list(found.items())[:8])
                lines.append(f"| {name} | {arm}: {shown} | | | | |")
                continue
            rate, memory, speed = (found.get(key, 0) for key in ("tflops", "MiB", "images_per_second"))
            cells = [
                f"{1000 * statistics.median(found['seconds']):.2f}",
                f"{speed:.1f}" if speed else "",
                f"{memory:.0f}" if memory else "",
                f"{rate / peak:.0%} ({rate:.0f} TFLOP/s)" if rate and peak else "",
            ]
            lines.append(f"| {name} | {arm} | {' | '.join(cells)} |")
    return lines


def ratio(entries: Sequence[str], ours: str, theirs: str, key: str = "median") -> Callable[[Record], float]:
    """Return what looks up the smallest ratio of two arms in some entries; KeyError where they were not measured."""

    def of(record: Record) -> float:
        found = [record.entries[name] for name in entries if record.has(name)]
        ratios = [entry[ours][key] / entry[theirs][key] for entry in found if ours in entry and theirs in entry]
        if not ratios:
            raise KeyError(ours)
        return float(min(ratios))

    return of


def best_training(record: Record) -> float:
    """Return the lowest ratio of one of our ways of training, compiled or not, to smp's two networks."""
    entries = [
        record.entries[name] for name in ("training, batch 16", "compiled training, batch 16") if record.has(name)
    ]
    return float(
        min(
            found["median"] / entry["smp"]["median"]
            for entry in entries
            for arm, found in entry.items()
            if arm.startswith("separable")
        )
    )


def supply(record: Record) -> float:
    """Return how many times as fast as the step the slower input is."""
    arms = {**record.entries["training, batch 16"], **record.entries.get("compiled training, batch 16", {})}
    need = max(arm.get("images_per_second", 0) for arm in arms.values() if isinstance(arm, dict))
    given = [record.entries[f"input, {name}"]["input"] for name in ("VOC files", "Cityscapes prepared")]
    return float(min(each["images_per_second"] for each in given) / need)


def share(record: Record) -> float:
    """Return the highest share of the measured matrix rate in training."""
    peak = record.entries["matrix rate"]["matrix product"]["tflops"]
    return float(max(arm["tflops"] for arm in record.entries["training, batch 16"].values()) / peak)


GOALS: dict[str, tuple[str, Callable[[Record], float]]] = {
    "step of `cross_c1_c2` with `add` : `none`, time": (
        "at most 1.03",
        ratio(["training, batch 16"], "cross_c1_c2", "none"),
    ),
    "the same, memory": ("at most 1.03", ratio(["training, batch 16"], "cross_c1_c2", "none", "MiB")),
    "best way of training : two smp networks (eager, channels-first, bf16)": (
        "at most 0.6",
        best_training,
    ),
    "`predict --fast` : two smp networks (eager, bf16), 513 x 513": (
        "at most 0.5",
        ratio(["inference, 513 x 513"], "fast", "smp, bfloat16"),
    ),
    "the same, 1024 x 2048": ("at most 0.5", ratio(["inference, 1024 x 2048"], "fast", "smp, bfloat16")),
    "share of the card's measured bf16 matrix rate in training": ("stated", share),
    "evaluation at 1024 x 2048 : the network's forward pass": (
        "at most 1.1",
        ratio(["evaluation, 1024 x 2048"], "evaluation", "forward"),
    ),
    "input : what the step takes (VOC from files, Cityscapes prepared)": ("at least 1.2", supply),
}
"""What is to be reached, and where it is found."""


def goals(record: Record) -> list[str]:
    """Return Markdown of the goals and what was reached."""
    lines = ["| ratio | goal | measured |", "|---|---|---|"]
    for name, (goal, value) in GOALS.items():
        try:
            shown = f"{value(record):.2f}" + " (rehearsal)" * record.content["rehearsal"]
        except (KeyError, ValueError):
            shown = "not yet run"
        lines.append(f"| {name} | {goal} | {shown} |")
    return lines
