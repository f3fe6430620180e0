"""bf16 on a CPU is refused where torch computes wrong gradients for a student's dilated convolutions."""

import json
import stat
import sys

import pytest
import torch
from torch import nn

from helpers.tiny import LABELS
from hf_segkd.loading.any_model import load_model
from hf_segkd.training import bfloat16
from hf_segkd.training.argument_checks import check_arguments
from hf_segkd.training.bfloat16 import is_wrong, shape, wrong_convolution
from hf_segkd.training.config import DistillationConfig


def dilated(channels=25, groups=1):
    return nn.Conv2d(channels, channels, 3, padding=2, dilation=2, groups=groups, bias=False)


def two_shapes():
    """The second and the third convolution are of one shape, and the first one is not dilated."""
    return nn.Sequential(nn.Conv2d(3, 25, 3), dilated(), dilated(), dilated(32, 32))


def checked_by(monkeypatch, tmp_path, script):
    """Let a shell script stand for the process that computes gradients."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(file))


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo right; echo right", None),
        ("echo right", "3"),
        ("exit 0", "1"),
        ("echo right; kill -SEGV $$", "3"),
    ],
)
def test_the_first_convolution_that_is_not_right_is_named(monkeypatch, tmp_path, script, found):
    """On an AMD EPYC, torch 2.13 ends the process at some of them."""
    checked_by(monkeypatch, tmp_path, script)
    assert wrong_convolution(two_shapes()) == found


@pytest.mark.parametrize(
    ("script", "reason"), [("echo no torch >&2; exit 1", "no torch"), ("kill -9 $$", "the system ended the process")]
)
def test_a_check_that_fails_is_not_taken_for_a_wrong_gradient(monkeypatch, tmp_path, script, reason):
    checked_by(monkeypatch, tmp_path, script)
    with pytest.raises(RuntimeError, match=f"could not be checked:\n{reason}"):
        wrong_convolution(two_shapes())


def test_students_without_dilation_start_no_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "nothing to run")
    assert wrong_convolution(load_model({"model_type": "segformer"}, id2label=LABELS)[0]) is None


def test_the_process_answers_for_each_shape_up_to_the_first_wrong_one(monkeypatch, capsys):
    shapes = json.dumps([shape(dilated(channels)) for channels in (16, 25, 32)])
    monkeypatch.setattr(bfloat16, "is_wrong", lambda convolution: convolution.in_channels == 25)
    bfloat16.main([shapes])
    assert capsys.readouterr().out == "right\n"


@pytest.mark.parametrize("groups", [1, 5, 25])
def test_gradients_are_compared_with_float32(monkeypatch, groups):
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_wrong(dilated(groups=groups))
    convolve = nn.functional.conv2d

    def broken(maps, weight, *options):
        if maps.dtype == torch.bfloat16:
            weight.register_hook(lambda gradient: gradient + float("nan"))
        return convolve(maps, weight, *options)

    monkeypatch.setattr("torch.nn.functional.conv2d", broken)
    assert is_wrong(nn.Conv2d(16, 16, 3, bias=False))


def test_the_refusal_names_the_convolution(tmp_path, monkeypatch):
    student = load_model({"model_type": "pspnet", "backbone": "mobilenetv3_small"}, id2label=LABELS)[0]
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=1, bf16=True)
    checked_by(monkeypatch, tmp_path, "exit 0")
    with pytest.raises(ValueError, match=r"PSPNet\w*, backbone\.\S+ \(Conv2d\(.*groups=.*\)\)\. Leave bf16 out"):
        check_arguments(args, student)
