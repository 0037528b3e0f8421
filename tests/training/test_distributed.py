"""Several processes compute what one computes: evaluation, training, batch norm and augmentation. If one dies, all end.

Run as a script with a run's folder, a rank, and what happens to it, it trains as one of two ranks.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import Python, in_ranks, ranks, written_below
from test_interruption import assert_same
from tiny import DATA, NETWORK, QUIET, Recorder, assert_equal, crosscoop, fit, load
from torch.nn.parallel import DistributedDataParallel

from crosscoop.data import SegmentationData, Streets
from crosscoop.network import create_network
from crosscoop.training.callbacks import ranks as callback
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.sync_batchnorm import TimmSyncBatchNorm
from crosscoop.training.task import CooperativeSegmentation

TWO = ranks(2)


def evaluate(folder, number, name, options):
    """Test on so many images, an odd number, into a run of this name."""
    crosscoop("test", "--ckpt_path", folder / "trained" / "best.ckpt", "--run", folder / f"{name}{number}",
              f"--data.dataset.num_test {number} --model.metrics+=BoundaryIoU", options)  # fmt: skip


def make_network():
    torch.manual_seed(0)
    return create_network(["test_resnet", "test_byobnet"], 5, channels=16).double().train()


def step(network, first, last):
    """Gradients and statistics after the backward pass of some of four images, all of whose pixels are labelled."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 33, 49, generator=generator, dtype=torch.float64)[first:last]
    mask = torch.randint(0, 5, (4, 33, 49), generator=generator)[first:last]
    sum(CrossEntropy()(logits, mask) for logits in network(image)).backward()
    plain = network.module if isinstance(network, DistributedDataParallel) else network
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    return {
        "gradients": gradients,
        "statistics": {key: value for key, value in plain.named_buffers() if "running" in key},
    }


def train_and_evaluate(rank, folder):
    """What each of the two processes does; it leaves what the tests look at."""
    written = written_below(folder)
    fit(folder / "run", TWO, "--trainer.sync_batchnorm true --data.dataset.num_train 8 --trainer.max_epochs 2",
        "--trainer.callbacks+=tiny.Recorder")  # fmt: skip
    recorder = Recorder.latest
    for number in (3, 5):
        evaluate(folder, number, "two", TWO)
    network = make_network()
    TimmSyncBatchNorm().apply(network)
    torch.save(step(DistributedDataParallel(network), 2 * rank, 2 * rank + 2), folder / f"step{rank}.pt")
    draws = [[epoch, name] for epoch, names in zip(recorder.epochs, recorder.names, strict=True) for name in names]
    record = {"draws": draws, "written": [path for path in written if "step" not in path]}
    (folder / f"rank{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left, and `trained`, a run of one process."""
    folder = tmp_path_factory.mktemp("distributed")
    fit(folder / "trained")
    assert in_ranks(folder, 2, train_and_evaluate, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("number", [3, 5])
def test_evaluation_counts_every_image_exactly_once(folder, number):
    evaluate(folder, number, "one", "")
    files = ("metrics.json", "confusion.json", "branches.json")
    one, two = (
        {file: json.loads((folder / f"{name}{number}" / file).read_text()) for file in files} for name in ("one", "two")
    )
    assert one == two
    assert one["metrics.json"]["num_images"] == number
    samples = Streets(num_test=number, height=32, width=64).samples("test")
    labelled = sum(int((sample.mask() < 255).sum()) for sample in samples)
    assert sum(map(sum, one["confusion.json"]["outputs"]["top"])) == labelled
    names = [(folder / f"{name}{number}" / "images.csv").read_text() for name in ("one", "two")]
    assert names[0] == names[1] and len(names[0].splitlines()) == number + 1


def evaluate_as_three(rank, folder):
    evaluate(folder, 5, "three", ranks(3))


def test_three_ranks_count_what_one_counts(folder, tmp_path):
    assert in_ranks(tmp_path, 3, evaluate_as_three, folder) == [0, 0, 0]
    evaluate(folder, 5, "one", "")
    for file in ("metrics.json", "confusion.json", "branches.json", "images.csv"):
        assert (folder / "three5" / file).read_text() == (folder / "one5" / file).read_text()


def test_training_validates_an_odd_number_and_leaves_a_run(folder):
    history = (folder / "run" / "history.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in history[1:]] == [["0", "2"], ["1", "4"]]
    checkpoint = load(folder / "run" / "last.ckpt")
    assert checkpoint["global_step"] == 4
    assert list(checkpoint["state_dict"]) == list(load(folder / "trained" / "last.ckpt")["state_dict"])
    assert json.loads((folder / "run" / "metrics.json").read_text())["num_images"] == 3
    crosscoop("test", "--run", folder / "run")
    assert json.loads((folder / "run" / "metrics.json").read_text())["stage"] == "test"


def test_ranks_train_on_different_samples(folder):
    draws = [json.loads((folder / f"rank{rank}.json").read_text())["draws"] for rank in (0, 1)]
    assert [len(each) for each in draws] == [8, 8]
    names = [f"train/{index:06d}" for index in range(8)]
    for epoch in (0, 1):
        assert sorted(name for each in draws for number, name in each if number == epoch) == names
    assert draws[0][:4] != [[0, name] for _, name in draws[0][4:]]  # shuffled anew


def draws_of(world_size, seed=0, num_train=8, num_workers=2):
    """(epoch, name, content) of all that the ranks draw in two epochs, from a loader with worker processes each."""
    streets = Streets(num_train=num_train, height=32, width=64)
    draws = []
    for rank in range(world_size):
        data = SegmentationData(streets, 2, num_workers=num_workers, crop_size=32, photometric=True, seed=seed)
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                contents = (hashlib.sha256(image.numpy()).hexdigest() for image in batch["image"])
                draws += [(epoch, *each) for each in zip(batch["name"], contents, strict=True)]
    return sorted(draws)


def test_every_rank_worker_and_epoch_augments_differently_and_reproducibly():
    draws = draws_of(2)
    assert len(draws) == 16 and len({content for _, _, content in draws}) == 16
    assert draws_of(2) == draws  # the same seed again
    assert draws_of(1) == draws_of(2, num_workers=0) == draws
    assert not {content for _, _, content in draws} & {content for _, _, content in draws_of(2, seed=1)}


def test_no_rank_repeats_the_draw_of_another_one_to_fill_its_share():
    draws = draws_of(2, num_train=7, num_workers=0)
    assert len(draws) == 4 * 2 and len({(epoch, name) for epoch, name, _ in draws}) == len(draws)


def nan_in_the_second_rank(rank, folder, options):
    step, calls = CooperativeSegmentation.training_step, []

    def poisoned(self, batch, batch_idx):
        calls.append(1)
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if len(calls) == 2 and rank == 1 else loss

    CooperativeSegmentation.training_step = poisoned
    fit(folder / "run", TWO, "--data.dataset.num_train 12 --trainer.callbacks+=tiny.Recorder", options)
    torch.save(dict(Recorder.latest.module.named_parameters()), folder / f"{rank}.pt")


def test_nan_in_one_rank_stops_all_with_one_message(tmp_path):
    assert in_ranks(tmp_path, 2, nan_in_the_second_rank, tmp_path, "") == [2, 2]
    outputs = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    messages = [line for each in outputs for line in each.splitlines() if "not finite" in line]
    assert len(messages) == 2 and messages[0] == messages[1]
    assert "(loss nan)" in messages[0] and messages[0].count("train/") == 4  # the samples of both ranks
    assert not any("Traceback" in output for output in outputs)


def test_nan_in_one_rank_is_left_out_by_all(tmp_path):
    assert in_ranks(tmp_path, 2, nan_in_the_second_rank, tmp_path, "--nonfinite.max_skips 1") == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal(first, second)
    assert all(value.isfinite().all() for value in first.values())
    assert load(tmp_path / "run" / "last.ckpt")["callbacks"]["NonFinite"] == {"skipped": 1}


FROZEN = "--network.freeze [backbones] --network.freeze_epochs 1 --data.balance true --data.dataset.num_train 8"


def train_frozen_and_balanced(rank, folder):
    fit(folder / "run", TWO, FROZEN, "--trainer.max_epochs 2 --checkpoint.save_top_k -1 --checkpoint.monitor epoch",
        "--trainer.callbacks+=tiny.Recorder")  # fmt: skip
    recorder = Recorder.latest
    torch.save({"first": recorder.first, "last": recorder.module.state_dict()}, folder / f"{rank}.pt")
    (folder / f"draws{rank}.json").write_text(json.dumps([*zip(recorder.epochs, recorder.names, strict=True)]))


def test_two_ranks_freeze_and_balance_as_one(tmp_path):
    assert in_ranks(tmp_path, 2, train_frozen_and_balanced, tmp_path) == [0, 0]
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    weights = {key for key in one["first"] if key.endswith("weight") and one["first"][key].ndim == 4}
    backbones = {key for key in weights if ".backbone." in key}
    (path,) = (tmp_path / "run").glob("epoch=0-*.ckpt")
    frozen = load(path)["state_dict"]
    assert {key for key in weights if torch.equal(frozen[key], one["first"][key])} == backbones
    assert not any(torch.equal(one["last"][key], one["first"][key]) for key in backbones)
    assert_equal({key: one["last"][key] for key in sorted(weights)}, {key: two["last"][key] for key in sorted(weights)})

    fit(tmp_path / "alone", FROZEN, "--trainer.max_epochs 2 --data.batch_size 4 --trainer.callbacks+=tiny.Recorder")
    alone = [(epoch, name) for epoch, names in zip(Recorder.latest.epochs, Recorder.latest.names, strict=True)
             for name in names]  # fmt: skip
    ranks_draws = [json.loads((tmp_path / f"draws{rank}.json").read_text()) for rank in (0, 1)]
    both = [(epoch, name) for each in ranks_draws for epoch, names in each for name in names]
    assert sorted(both) == sorted(alone) and len(both) == 16


def test_only_the_first_rank_writes_and_prints(folder):
    first, second = (json.loads((folder / f"rank{rank}.json").read_text())["written"] for rank in (0, 1))
    assert second == []
    assert {"config.yaml", "history.csv"} <= {Path(path).name for path in first}
    printed = [(folder / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert [each.count("Metrics: ") for each in printed] == [2, 0]
    assert "sync_dist" not in printed[0]  # Lightning's advice to sum what is summed


def test_batch_norm_over_two_processes_is_that_of_the_joined_batch(folder):
    expected = step(make_network(), 0, 4)
    alone = step(make_network(), 0, 2)
    for rank in (0, 1):
        given = torch.load(folder / f"step{rank}.pt", weights_only=True)
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(AssertionError):  # it is no small matter
        torch.testing.assert_close(alone, expected, rtol=1e-2, atol=1e-4)


def void_batch(world_size):
    """A joined batch whose ranks have very different shares of void; one has nothing else."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2 * world_size, 3, 33, 49, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 5, (2 * world_size, 33, 49), generator=generator)
    mask[:2] = 255
    mask[2, :20] = 255
    return image, mask


def loss_gradients(network, image, mask):
    loss = CrossEntropy([1, 2, 3, 4, 5]).double()
    sum(loss(logits, mask) for logits in network(image)).backward()
    plain = network.module if isinstance(network, DistributedDataParallel) else network
    return {name: parameter.grad for name, parameter in plain.named_parameters()}


def leave_gradients(rank, world_size, folder):
    store = torch.distributed.FileStore(str(folder / "store"), world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    network = make_network()
    TimmSyncBatchNorm().apply(network)
    image, mask = (each[2 * rank : 2 * rank + 2] for each in void_batch(world_size))
    torch.save(loss_gradients(DistributedDataParallel(network), image, mask), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_are_those_of_the_joined_batch_however_much_is_void(tmp_path, world_size):
    assert in_ranks(tmp_path, world_size, leave_gradients, world_size, tmp_path) == [0] * world_size
    expected = loss_gradients(make_network(), *void_batch(world_size))
    for rank in range(world_size):
        given = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-12)


# -- launchers other than Lightning's

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
CROSSCOOP = [sys.executable, "-m"]


def slurm(rank):
    """What srun tells a task."""
    numbers = {"JOB_ID": os.getpid() % 5000, "NTASKS": 2, "NTASKS_PER_NODE": 2, "PROCID": rank, "LOCALID": rank}
    named = {"JOB_NAME": "train", "NODEID": "0", "NODELIST": "localhost"}
    return {f"SLURM_{name}": str(value) for name, value in {**numbers, **named}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_other_launchers_train_and_resume(tmp_path, launcher):
    torchrun, run = launcher == "torchrun", tmp_path / "run"
    front, environments = ([*TORCHRUN, "crosscoop", "--"], [{}]) if torchrun else (
        [*CROSSCOOP, "crosscoop"], [slurm(0), slurm(1)]
    )  # fmt: skip
    for epochs in (1, 2):
        words = [*NETWORK, *DATA, *QUIET, *TWO.split(), "--resume", "--trainer.max_epochs", str(epochs)]
        command = [*front, "fit", "--run", str(run), *words, "--data.dataset.num_train", "8"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes = [subprocess.Popen(command, env=os.environ | each, **pipes) for each in environments]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        assert load(run / "last.ckpt")["global_step"] == 2 * epochs  # 8 crops, 2 ranks, batches of 2
        assert "".join(outputs).count("Best of") == 1, outputs


# -- ranks that die or are asked to end

EVENTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": lambda: exec("raise RuntimeError('broken')"),
    "hangs": lambda: time.sleep(1000),
    "orphaned": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(1000)),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.killpg(os.getpgid(0), signal.SIGINT),
    "nothing": lambda: None,
}


def train(own_rank, run, rank, event, *options):
    """Train with two ranks; in the sixth step, within the second epoch, something happens to one of them."""
    step, calls = CooperativeSegmentation.training_step, []

    def disturbed(self, batch, batch_idx):
        calls.append(1)
        if len(calls) == 6 and self.trainer.global_rank == rank:
            EVENTS[event]()
        return step(self, batch, batch_idx)

    CooperativeSegmentation.training_step = disturbed
    written = written_below(run)
    try:
        fit(run, ranks(2), "--data.dataset.num_train 16 --trainer.max_epochs 3", *options)
    finally:
        if own_rank > 0:
            print("written by another rank:", written)


def launched(run, rank, event, *options):
    """The same, the second rank started by Lightning; returns exit code, stderr, and whether a process is left."""
    process = Python([sys.executable, __file__, run, rank, event, *options], stdout=subprocess.DEVNULL,
                     stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        errors = process.read(timeout=240)  # all processes hold the other end of stderr
    except subprocess.TimeoutExpired:
        errors = None
    finally:
        if any_process(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


def any_process(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


slow = pytest.mark.slow


@pytest.mark.parametrize(("rank", "event", "options", "reason"), [
    (1, "killed", "--data.num_workers 1", "code -9"),
    (1, "orphaned", "--data.num_workers 1", "rank 1: the first rank has exited"),
    pytest.param(0, "killed", "", "RuntimeError", marks=slow),  # the lost connection
    pytest.param(1, "raises", "", "broken", marks=slow),
    pytest.param(0, "raises", "", "broken", marks=slow),
    pytest.param(1, "hangs", "--trainer.strategy DDPStrategy --trainer.strategy.timeout 00:00:20", "Timed out",
                 marks=slow),
])  # fmt: skip
def test_dead_rank_ends_the_others(tmp_path, rank, event, options, reason):
    code, errors = launched(tmp_path / "run", rank, event, *options.split())
    assert errors is not None, "processes are left"
    assert code != 0 and reason in errors, errors
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 4


@pytest.mark.parametrize("event", ["SIGTERM", pytest.param("SIGINT", marks=slow)])
def test_ranks_that_are_asked_to_end_go_on_bit_for_bit(tmp_path, event):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    if event == "SIGTERM":
        assert in_ranks(tmp_path, 2, train, whole, 0, "nothing") == [0, 0]
        assert in_ranks(tmp_path, 2, train, parts, 0, event) == [128 + signal.SIGTERM, 0]
        said = "".join((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
        assert "written by another rank: []" in said
    else:
        assert launched(whole, 0, "nothing")[0] == 0
        code, said = launched(parts, 0, event)
        assert code == 128 + signal.SIGINT
    assert said.count(f"crosscoop fit --run {parts} --resume") == 1 and "Traceback" not in said
    assert load(parts / "last.ckpt")["global_step"] == 6
    assert in_ranks(tmp_path, 2, train, parts, 0, "nothing", "--resume") == [0, 0]
    assert_same(whole, parts)


if __name__ == "__main__":
    callback.PATIENCE = 3.0
    train(int(os.environ.get("LOCAL_RANK", 0)), Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
