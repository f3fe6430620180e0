"""What a model costs."""

import importlib

import pytest
import torch
from torch import nn

from hf_segkd.evaluation.profiling import count_macs, measure, thread_count
from hf_segkd.models.compat import PreTrainedConfig


def benchmark_script():
    return importlib.import_module("hf_segkd.commands.profile")


class TwoLayers(nn.Module):
    dtype = torch.float32
    config = PreTrainedConfig()

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 7, 1))

    def forward(self, pixel_values):
        return self.layers(pixel_values)


def test_operations_of_a_case_done_by_hand():
    """Counting additions too, or one layer less, is off by a factor of two: both happen in published tables."""
    assert count_macs(TwoLayers(), (8, 12)) == 4 * 6 * (5 * 3 * 9 + 7 * 5)


@pytest.mark.parametrize("use_decoder, gmacs", [(True, 4.7), (False, 3.5)])
def test_operations_of_espnet_are_the_published_ones(use_decoder, gmacs):
    """Our count of a whole network, against an independent one."""
    from hf_segkd.loading.any_model import load_model

    labels = {index: str(index) for index in range(19)}
    model = load_model({"model_type": "espnet", "use_decoder": use_decoder}, id2label=labels)[0]
    assert count_macs(model, (512, 1024)) / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_counting_leaves_the_model_usable():
    """Counting on the meta device must not take the weights away."""
    model = TwoLayers()
    count_macs(model, (8, 8))
    assert model(torch.ones(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("variant", ["eager", "channels_last", "bf16"])
def test_every_variant_is_measured(variant):
    """Times are positive and ordered, the throughput belongs to the median."""
    result = measure(TwoLayers(), (16, 16), variant, batch_size=2, repeats=5)
    assert 0 < result["p50_ms"] <= result["p90_ms"]
    assert result["images_per_second"] == pytest.approx(2000 / result["p50_ms"])


def test_unknown_variants_are_refused():
    """Measured as eager, a misspelled variant would be a wrong number with a name."""
    with pytest.raises(ValueError, match="Unknown variant 'fp8'"):
        measure(TwoLayers(), (16, 16), "fp8")


def test_ratios_refer_to_the_first_row():
    """The ratio of student to teacher is what the table is for."""
    row = {"model": "a", "variant": "eager", "parameters": 2e6, "macs": 4e9, "p50_ms": 10.0, "p90_ms": 12.0}
    first = {**row, "images_per_second": 100.0, "peak_mib": 50.0}
    _, rows = benchmark_script().cells([first, {**first, "model": "b", "p50_ms": 5.0}])
    assert rows[1][:5] == ["b", "eager", "2.00 (1.00x)", "4.00 (1.00x)", "5.00 (0.50x)"]
    assert not any("x)" in cell for cell in rows[0])


def test_one_thread_is_written_in_the_singular():
    assert [thread_count(count) for count in (1, 2)] == ["1 thread", "2 threads"]
