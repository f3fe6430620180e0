"""An exported ONNX file at work in a runtime for CPUs. Imports no runtime before it is asked for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_segkd.values import check_choice

RUNTIMES = ("onnxruntime", "openvino")


def open_runtime(path: str | Path, runtime: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Load a file of [`~hf_segkd.deployment.onnx_export.export_onnx`] into a runtime.

    Args:
        path (`str` or `Path`): The ONNX file.
        runtime (`str`): One of `RUNTIMES`.
        threads (`int`): CPU threads.

    Returns:
        `Callable`: From images (B, H, W, C) to what the file gives, class ids (B, H, W) or logits.

    Raises:
        ValueError: An unknown runtime.
        ImportError: One that is not installed.
    """
    check_choice("runtime", runtime, RUNTIMES)
    if runtime == "onnxruntime":
        return _onnxruntime(path, threads)
    return _openvino(path, threads)


def _onnxruntime(path: str | Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime is not installed: pip install 'hf-segkd[onnx]'") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _openvino(path: str | Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is not installed: pip install 'hf-segkd[openvino]'") from error

    # Without the last, a processor that has bfloat16 would compute in it.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options)
    return lambda images: model([images])[0]


def median_ms(run: Callable[[np.ndarray], object], images: np.ndarray, repeats: int = 10, warmup: int = 2) -> float:
    """Median milliseconds of `repeats` calls, after `warmup` calls that do not count."""
    seconds = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[warmup:])
