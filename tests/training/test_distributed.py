"""Two processes: equal weights and queues on both, and the training of one process with the whole batch."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch

from helpers.loss_cases import build, labels_for, pair
from helpers.paths import ROOT, TESTS
from helpers.two_processes import CASES, train
from hf_segkd.losses import LOSSES

# Where two processes with half the batch each do not train as one with the whole batch, and why. Everywhere else they
# do: with frozen BatchNorm and as many labeled pixels in each process.
DIFFERENT = {
    "kd, cross_entropy_sum": "it is a sum over the images of a process, not their mean",
    "dist": "one of its terms correlates all pixels of the local batch",
    "cskd": "CKA compares the images of the local batch; with `gather` of all",
    "cirkd_minibatch": "the images of the local batch are paired; with `gather` those of all",
    "cirkd_memory": "each process draws its own keys; equal when every slot is a key",
    "cirkdv2": "both of the above",
    "mgd": "each process draws masks of its own",
    "af_dcd": "each process draws masks of its own",
    "pkd, batch": "its statistics are those of the local batch",
}
# What relates images, or fills its queue, of the whole batch at once: parts of it one after another do not. And the
# discriminator's spectral norms, which go one iteration on with every pass.
TOGETHER = {case for case in CASES if "gather" in case or "whole" in case} | {"adversarial"}


alone = cache(train)  # several tests compare with this process's training of the whole batch


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What both processes found, from one launch for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(TESTS / "helpers" / "two_processes.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{TESTS}"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_queues_are_equal_in_both_processes(case, processes):
    """Nothing is broadcast after the start: what once differs, differs more with every step."""
    first, second = (states[case] for states in processes)
    assert distance(first["parameters"], second["parameters"]) == 0.0
    assert first["buffers"].keys() == second["buffers"].keys()
    assert all(torch.equal(x, second["buffers"][key]) for key, x in first["buffers"].items())


@pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFERENT])
def test_two_processes_with_half_the_batch_train_as_one_with_the_whole(case, processes):
    """Otherwise a published recipe means something else on every number of devices."""
    # 1e-11: float64, a few steps of sums in another order.
    assert distance(alone(case)["parameters"], processes[0][case]["parameters"]) < 1e-11


@pytest.mark.parametrize("case", [case for case in CASES if case in DIFFERENT])
def test_where_two_processes_train_differently_the_docstring_says_so(case, processes):
    """A user who adds a device must know that the method changes; a fixed method must leave the table."""
    assert distance(alone(case)["parameters"], processes[0][case]["parameters"]) > 1e-6
    text = " ".join(LOSSES[CASES[case][0]].__doc__.split())
    assert "two processes with half the batch each" in text.lower()


@pytest.mark.parametrize("case", [case for case in CASES if case != "cskd, gather"])  # it refuses parts of two images
def test_accumulated_parts_train_as_the_whole_batch_where_two_processes_do(case):
    """A recipe for a large device must mean the same on a small one; what `gather` relates must be there at once."""
    whole, parts = alone(case)["parameters"], train(case, accumulation=2)["parameters"]
    alike = case not in DIFFERENT and case not in TOGETHER
    assert (distance(whole, parts) < 1e-11) == alike


def test_trainer_keeps_weights_and_queues_equal(processes):
    """The real run: prepared by accelerate, with queues that each process fills from what all of them send."""
    first, second = (states["trainer"]["after"] for states in processes)
    assert first.keys() == second.keys() and all(torch.equal(x, second[key]) for key, x in first.items())
    before = processes[0]["trainer"]["before"]
    unchanged = {key for key, x in first.items() if torch.equal(x, before[key])}
    assert not [key for key in unchanged if "queue" in key or "weight" in key]


def test_gathered_rows_send_the_gradients_of_all_processes_back(processes):
    """Autograd alone stops at the process: the other one's loss would not reach the features it was computed from."""
    for states, gradient in zip(processes, ([0.0, 11.0], [22.0, 33.0]), strict=True):
        assert states["gather"]["value"].tolist() == states["gather"]["without"].tolist() == [0.0, 1.0, 2.0, 3.0]
        assert states["gather"]["gradient"].tolist() == gradient


def test_cskd_counts_the_images_of_all_processes_only_with_gather():
    """A message about the local batch would send the user the wrong way."""
    student, teacher = pair("cskd", batch=2)
    with pytest.raises(ValueError, match="at least 3 on all devices together, got 2"):
        build("cskd", gather=True)(student, teacher, labels_for("cskd"))
    with pytest.raises(ValueError, match="gather serves CKA"):
        build("cskd", gather=True, comparison="mse")


def test_single_images_are_warned_of_where_gather_would_help(caplog):
    """With one image per process, the mini-batch terms silently relate an image to itself alone."""
    loss = build("cirkd_minibatch")
    for _ in range(2):
        loss(*pair("cirkd_minibatch", batch=1), None)
    assert [record.message.count("Set gather: true") for record in caplog.records] == [1]
