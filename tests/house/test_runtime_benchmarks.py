"""What `benchmarks/latency.py` and `benchmarks/int8.py` make of the numbers that they measure."""

import importlib
import sys

import numpy as np
import pytest

from helpers.paths import ROOT

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
sys.path.append(str(ROOT))
int8, latency = (importlib.import_module(f"benchmarks.{name}") for name in ("int8", "latency"))


def test_forms_are_measured_in_turn():
    """Measured one after the other, a form would pay for what another process did in its minute."""
    calls = []
    runs = {name: lambda image, name=name: calls.append(name) for name in ("eager", "openvino")}
    times = latency.rounds_of(runs, np.zeros((2, 2, 3), dtype=np.uint8), rounds=3, threads=1)
    assert calls == ["eager", "openvino"] * 5
    assert {name: len(values) for name, values in times.items()} == {"eager": 3, "openvino": 3}


def test_ratios_are_of_the_same_round():
    """The machine was half as fast in the last rounds: medians of each form alone would compare two machines."""
    case = {"ms": {"eager": [10.0, 20.0, 20.0], "openvino": [5.0, 10.0, 11.0]}}
    assert latency.summary(case) == {"eager": (20.0, 1.0), "openvino": (10.0, 0.5)}


def test_a_form_that_was_left_out_is_said_to_be_not_run():
    """An empty cell would read as a failure, or as zero."""
    case = {"student": "ESPNet-C", "size": "360x480", "threads": 1, "ms": {"eager": [8.0]}}
    other = case | {"ms": {"eager": [8.0], "openvino": [4.0]}}
    rows = latency.table([case, other]).splitlines()
    assert rows[0] == "| student | size | threads | eager | openvino |"
    assert rows[2:] == [
        "| ESPNet-C | 360x480 | 1 | 8 (1.00) | not run |",
        "| ESPNet-C | 360x480 | 1 | 8 (1.00) | 4 (0.50) |",
    ]


def test_losses_refer_to_the_first_form():
    """Relative to another column, the cost of int8 would be a difference between runtimes."""
    rows = [{"model": "student", "mean_iou": {"PyTorch fp32": 0.5, "openvino int8": 0.4925}}]
    assert int8.table(rows).splitlines()[-1] == "| student | 50.00 (+0.00) | 49.25 (-0.75) |"
