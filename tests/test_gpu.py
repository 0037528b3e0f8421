"""What may differ on a GPU, compared with the CPU in double precision; `pytest -m gpu`, skipped without CUDA.

`pytest -m gpu --device cpu` runs the same tests on the CPU, as a rehearsal.
"""

import copy
import gc
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from pytorch_lightning.plugins import MixedPrecision
from test_exchange import CATALOGUE
from test_interruption import NOISY, in_a_process, read_history
from test_network import SHALLOW
from tiny import STREETS, Recorder, count, crosscoop, fit, load
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import crosscoop as package
from crosscoop.data import SegmentationData
from crosscoop.evaluation.boundary import BoundaryIoU
from crosscoop.evaluation.inference import upsampled_labels
from crosscoop.evaluation.metrics import BranchComparison
from crosscoop.evaluation.scores import count_pairs
from crosscoop.network.cooperative import Cascade
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.sync_batchnorm import TimmSyncBatchNorm

pytestmark = pytest.mark.gpu
RECORD = "--trainer.callbacks+=tiny.Recorder"
COMPUTED = [case for case in CATALOGUE if case[0] != "none" or case[1] == "add"]
"""Every strategy with every operator; without connections there is none."""


@pytest.fixture(autouse=True)
def _exact():
    """Convolve float32 in float32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def trainer(device):
    """Options that train on the device."""
    return f"--trainer.accelerator {'gpu' if device == 'cuda' else 'cpu'} --trainer.devices 1"


def run(network, dtype=torch.float64, device="cpu", layout=torch.contiguous_format):
    """Logits and gradients of a training step of a copy, as double on the CPU."""
    network = copy.deepcopy(network).to(device, dtype).to(memory_format=layout).train()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 33, 49, generator=generator, dtype=torch.float64)
    mask = torch.randint(5, (2, 33, 49), generator=generator)
    logits = network(image.to(device, dtype))
    sum(CrossEntropy()(each, mask.to(device)) for each in logits).backward()
    values = [*logits, *(parameter.grad for parameter in network.parameters())]
    return [value.detach().double().cpu() for value in values]


def error(actual, expected):
    """The largest error of a tensor, relative to its norm; tensors near zero count by the largest norm."""
    scale = max(float(each.norm()) for each in expected)
    pairs = zip(actual, expected, strict=True)
    return max(float((a - b).norm()) / max(float(b.norm()), 1e-3 * scale) for a, b in pairs)


# -- the network


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("strategy", "fusion"), COMPUTED)
def test_logits_and_gradients_are_those_of_the_cpu(make_pair, device, strategy, fusion, dtype):
    network = make_pair(strategy, fusion)
    assert error(run(network, dtype, device), run(network)) < {torch.float64: 1e-9, torch.float32: 1e-2}[dtype]


@pytest.mark.parametrize("separable", [False, True])
def test_channels_last_is_a_layout_and_nothing_else(make_pair, device, separable):
    network = make_pair(separable=separable)
    assert error(run(network, torch.float64, device, torch.channels_last), run(network)) < 1e-9


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_learns_under_autocast(make_pair, device, dtype, layout):
    network = make_pair(fusion="average").to(device, memory_format=layout).train()
    image = torch.rand(4, 3, 48, 64, device=device)
    mask = (torch.arange(64, device=device) // 13).expand(4, 48, 64)  # stripes, which can be learned
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    scaler, losses = torch.amp.GradScaler(device, enabled=dtype is torch.float16, init_scale=1024.0), []
    for _ in range(16):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            logits = network(image)
            loss = sum(CrossEntropy()(each, mask) for each in logits)
        assert logits[0].dtype == dtype and loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in network.parameters())


def backend(device):
    return "inductor" if device == "cuda" else "aot_eager"  # inductor takes minutes on a CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles_into_one_graph_that_trains_as_the_plain_network(make_pair, device, dtype):
    torch._dynamo.reset()
    network, image = make_pair(fusion="concat").to(device).train(), torch.rand(2, 3, 33, 49, device=device)
    results = []
    for forward in (network, torch.compile(network, fullgraph=True, backend=backend(device))):
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = forward(image)
            loss = sum(each.float().square().mean() for each in logits)
        results.append([*logits, *torch.autograd.grad(loss, list(network.parameters()))])
    assert error(results[1], results[0]) < (1e-2 if dtype is torch.float32 else 0.2)


def test_compiles_not_for_each_size_again(make_pair, device):
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip(f"torch {torch.__version__} compiles again for further sizes; 2.13 does not")
    torch._dynamo.reset()
    network, counter = make_pair(**SHALLOW).to(device), torch._dynamo.testing.CompileCounterWithBackend(backend(device))
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    for size in [(33, 49), (64, 80), (50, 131), (96, 65)]:
        image = torch.rand(2, 3, *size, device=device)
        with torch.no_grad():
            assert error(compiled(image), network(image)) < 1e-2
    assert counter.frame_count <= 2  # once without a backend's own guards: test_network


def test_synchronised_batch_norm_of_one_rank_is_batch_norm(make_pair, device, tmp_path):
    network = make_pair(branches=["test_resnet", "test_efficientnet"]).double()
    expected = run(network)
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", store, rank=0, world_size=1)
    try:
        synced = TimmSyncBatchNorm().apply(copy.deepcopy(network).to(device))
        assert any("Sync" in type(module).__name__ for module in synced.modules())
        wrapped = DistributedDataParallel(synced)
        assert error(run(wrapped.module, torch.float64, device), expected) < 1e-9
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(2, 3, 33, 49, generator=generator, dtype=torch.float64).to(device)
        sum(logits.square().mean() for logits in wrapped.train()(image)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in synced.parameters())
    finally:
        distributed.destroy_process_group()


def test_cascade_answers_as_on_the_cpu(make_pair, device):
    network = make_pair("none").double()
    image = torch.rand(4, 3, 33, 49, dtype=torch.float64)
    middle = float(network.branches[1](image).softmax(1).amax(1).mean((1, 2)).median())
    network.cascade = Cascade(1, middle)
    with torch.no_grad():
        expected = network.cascaded(image)
        logits, sent = network.to(device).cascaded(image.to(device))
    assert 0 < sent.sum() < 4 and torch.equal(sent.cpu(), expected[1])
    assert error([logits.cpu()], expected[:1]) < 1e-9


# -- evaluation


def test_counts_are_exact_and_deterministic(device):
    labels, mask = torch.randint(19, (2, 512, 1024), dtype=torch.uint8), torch.randint(20, (2, 512, 1024))
    mask[mask == 19] = 255
    expected = count(labels.numpy(), mask.numpy(), 19)
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            counts = count_pairs(labels.to(device), mask.to(device), 19)
            assert counts.dtype == torch.int64 and np.array_equal(counts[:, :-1].cpu().numpy(), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_further_metrics_are_those_of_the_cpu(device):
    outputs = {name: torch.randint(5, (2, 64, 96), dtype=torch.uint8) for name in ("top", "bottom", "ensemble")}
    mask, results = torch.randint(6, (2, 64, 96)), []
    for place in ("cpu", device):
        comparison, boundary = BranchComparison(5, ["top", "bottom"]).to(place), BoundaryIoU(5).to(place)
        comparison.update({name: labels.to(place) for name, labels in outputs.items()}, mask.to(place))
        boundary.update(outputs["top"].to(place), mask.to(place))
        results.append([each.cpu() for each in (*comparison.compute(), boundary.counts)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_labels_of_upsampled_logits_are_those_of_the_cpu(device, dtype):
    logits = torch.nn.functional.interpolate(torch.randn(2, 19, 9, 17), (65, 129), mode="bilinear").to(dtype)
    labels = upsampled_labels(logits.to(device), (257, 513))
    assert (labels.cpu() == upsampled_labels(logits, (257, 513))).float().mean() > 0.9999


# -- the command line


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_evaluation_and_prediction_run_on_the_device(tmp_path, device, trainer, precision):
    before, used = settings(), f"{trainer} --trainer.precision {precision}"
    fit(tmp_path / "run", RECORD, "--model.channels_last true --data.num_workers 2 --trainer.max_epochs 2", used)
    assert Recorder.latest.module.network.branches[0].classifier.weight.isfinite().all()
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 4
    counts = {}
    for place, options in (("device", trainer), ("cpu", "--trainer.accelerator cpu")):
        crosscoop("test", "--ckpt_path", tmp_path / "run" / "best.ckpt", "--run", tmp_path / place, options)
        outputs = json.loads((tmp_path / place / "confusion.json").read_text())["outputs"]
        counts[place] = np.array(list(outputs.values()))
    assert counts["cpu"].sum() == counts["device"].sum() > 0
    assert np.abs(counts["device"] - counts["cpu"]).sum() <= 2e-3 * counts["cpu"].sum()
    plain, fast = (
        package.load(tmp_path / "run" / "best.ckpt", device=place, fast=on)
        for place, on in (("cpu", False), (device, True))
    )
    image = STREETS.samples("test")[0].image()
    expected, actual = plain(image), fast(image)
    assert np.abs(actual.probabilities - expected.probabilities).max() < 0.05
    crosscoop("predict", "--run", tmp_path / "run", "--device", device, "--fast --save labels,overlays")
    assert len(list((tmp_path / "run" / "predictions").rglob("*.png"))) == 6
    assert settings() == before


@pytest.mark.parametrize("options", [
    "--model.objective MutualLearning --model.loss Focal",
    "--data.unlabelled 0.5 --data.strong true --data.cutmix 0.5 --model.objective CrossPseudoSupervision",
    "--network.strategy '{points: [aspp, decoder], dropout: 0.5}' --model.alone true --model.metrics+=BoundaryIoU "
    "--trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay 0.5",
    "--network.strategy none --network.cascade '{branch: bottom, confidence: 0.3}'",
])  # fmt: skip
def test_parts_train_and_are_tested_on_the_device(tmp_path, trainer, options):
    fit(tmp_path, trainer, options)
    crosscoop("test", "--run", tmp_path, trainer)
    assert 0 <= json.loads((tmp_path / "metrics.json").read_text())["miou"] <= 1


def settings():
    """Settings of the process that a run may not leave changed."""
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    return torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), cuda


def test_killed_run_resumes_to_what_it_would_have_been(tmp_path, trainer):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = f"{NOISY} --data.dataset.num_train 12 --data.num_workers 1 --last.every_n_steps 1 {trainer}"
    options += " --trainer.max_epochs 2"
    fit(whole, options)
    prelude = """
from crosscoop.training.task import CooperativeSegmentation as Task
step = Task.training_step
Task.training_step = lambda *arguments: print("step", flush=True) or step(*arguments)
"""
    process = in_a_process(parts, options, prelude)
    lines = iter(process.pipe.readline, b"")
    assert all(b"step\n" in lines for _ in range(3)), "the run has ended"
    os.killpg(process.pid, signal.SIGKILL)
    process.read()
    assert process.returncode == -signal.SIGKILL
    crosscoop("fit", "--run", parts, "--resume")
    first, second = (load(folder / "last.ckpt") for folder in (whole, parts))
    assert first["global_step"] == second["global_step"] == 12
    assert len(read_history(whole)) == len(read_history(parts)) == 2
    values = [[each.double().cpu() for each in state["state_dict"].values()] for state in (first, second)]
    assert error(values[1], values[0]) < 0.05  # on a GPU, sums of gradients vary from run to run


class Half(MixedPrecision):
    """16-mixed with a scale that needs no search; on a CPU Lightning would take bfloat16."""

    def __init__(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__("16-mixed", device, torch.amp.GradScaler(device, init_scale=256.0))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_each_branch_are_clipped_under_float16(tmp_path, device, trainer, fused):
    plugin = "tiny.Half" if device == "cpu" else "test_gpu.Half"
    options = (
        "--model.optimizer.lr 1 --model.optimizer.momentum 0 --model.optimizer.weight_decay 0 --network.fusion concat "
        f"--model.optimizer.fused {str(fused).lower()} --trainer.max_steps 1 --trainer.gradient_clip_val 0.01"
    )
    fit(tmp_path, RECORD, options, trainer, f"--trainer.plugins {plugin}")
    first, last = Recorder.latest.first, load(tmp_path / "last.ckpt")["state_dict"]
    parts = {"network.branches.0.": [], "network.branches.1.": [], "network.": []}
    for key, _ in Recorder.latest.module.named_parameters():
        part = next(start for start in parts if key.startswith(start))
        parts[part].append((last[key].cpu() - first[key].cpu()).flatten())
    assert [float(torch.cat(part).norm()) for part in parts.values()] == pytest.approx([0.01] * 3, rel=2e-2)


# -- from the loader to the device


def test_batches_reach_the_device_from_pinned_memory_without_waiting(tmp_path, device, trainer, monkeypatch):
    if device == "cpu":
        pytest.skip("there is nothing to transfer")
    asked, original = [], torch.Tensor.to

    def to(tensor, *arguments, **options):
        if tensor.ndim == 4 and tensor.dtype == torch.uint8:
            asked.append((tensor.is_pinned(), options.get("non_blocking", True in arguments)))
        return original(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    fit(tmp_path, trainer)
    assert len(asked) >= 2 and set(asked) == {(True, True)}


def test_images_are_the_same_bytes_on_the_device(device):
    data = SegmentationData(STREETS, batch_size=2, crop_size=32, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    moved = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    there, here = (data.on_after_batch_transfer(each, 0) for each in (moved, batch))
    assert there["image"].device.type == device and there["mask"].dtype == torch.int64
    torch.testing.assert_close(there["image"].cpu(), here["image"], rtol=1e-6, atol=0)
    assert torch.equal(there["mask"].cpu(), here["mask"])


def test_memory_is_free_again_after_a_run(tmp_path, device, trainer):
    if device == "cpu":
        pytest.skip("only a GPU's memory is counted")
    used = []
    for number in range(3):
        fit(tmp_path / str(number), trainer)
        gc.collect()
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[2] <= used[0] + 2**20  # the first may keep cuBLAS's workspace


def test_loader_seeds_do_not_depend_on_the_device(tmp_path, device, trainer):
    names = []
    for options in (trainer, "--trainer.accelerator cpu"):
        fit(tmp_path / str(len(names)), RECORD, "--trainer.max_epochs 2", options)
        names.append(Recorder.latest.names)
    assert names[0] == names[1]
