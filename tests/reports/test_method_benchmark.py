"""The queue of `scripts/benchmark.py`, the interval of a gain, and the table made of both."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.commands import recipe, script, trained_here
from helpers.paths import ROOT
from hf_segkd.evaluation.comparison import paired_bootstrap, paired_gain
from hf_segkd.reports.method_benchmark import changed_keys, read_results, results_table, write_results

sys.path.append(str(ROOT / "scripts"))  # at the end: its evaluate.py must not shadow the package
benchmark = script("benchmark")


def counts(seeds: int, images: int = 40, shift: int = 0) -> torch.Tensor:
    """Random intersections and unions (S, N, 2, K) of 3 classes; `shift` pixels more are right."""
    generator = torch.Generator().manual_seed(7)
    unions = torch.randint(60, 100, (seeds, images, 3), generator=generator)
    intersections = torch.randint(20, 50, (seeds, images, 3), generator=generator) + shift
    return torch.stack([intersections, unions], dim=2)


def run_of(method: str, seed: int, **changes) -> dict:
    facts = {"dataset": "camvid", "split": "test", "images": 40, "protocol": "whole image", "steps": 10}
    cost = {"seconds_per_step": 2.0, "peak_memory_mib": 100, "loss_parameters": 0, "hardware": "a CPU"}
    return {"method": method, "seed": seed, "mean_iou": 0.5} | facts | cost | changes


def test_gain_of_one_seed_is_the_paired_bootstrap_of_two_models():
    """With nothing to draw but images, both must tell the same story."""
    better, worse = counts(1, shift=3), counts(1)
    gain = paired_gain(better, worse, samples=2000)
    expected = paired_bootstrap(better[0], worse[0], samples=2000).mean_iou
    assert gain[0] == pytest.approx(expected[0], abs=1e-12)
    assert gain[1:] == pytest.approx(expected[1:], abs=2e-3)


def test_gain_is_the_mean_over_seeds_and_its_interval_knows_that_seeds_differ():
    """Seeds that disagree widen the interval; images alone would call either seed's gain certain."""
    base = counts(2, images=400)
    method = base.clone()
    method[0, :, 0] += 10
    gain, low, high = paired_gain(method, base, samples=2000)
    single = paired_gain(method[:1], base[:1], samples=2000)
    assert gain == pytest.approx(single[0] / 2, abs=1e-12)
    assert low == pytest.approx(0, abs=1e-6) and high == pytest.approx(single[0], abs=0.01)


def test_gain_of_nothing_is_nothing():
    """The same counts on both sides: any width here would be an error of pairing."""
    same = counts(3)
    assert paired_gain(same, same, samples=100) == (0.0, 0.0, 0.0)


def test_gain_refuses_other_images():
    """Broadcasting one seed against two would give a number."""
    with pytest.raises(ValueError, match=r"same seeds.*\(1, 40, 2, 3\) and \(2, 40, 2, 3\)"):
        paired_gain(counts(1), counts(2))


def test_table_pairs_seeds_that_both_methods_finished(tmp_path):
    """A method with a seed more than the baseline must not be compared on it."""
    runs = [run_of("base", 0), run_of("base", 1, mean_iou=0.6), run_of("kd", 1, mean_iou=0.7, loss_parameters=1234)]
    runs[2]["seconds_per_step"] = 3.0
    write_results([*runs, run_of("kd", 2)], [*counts(2), *counts(2, shift=2)], "base", tmp_path)
    base, kd = read_results(tmp_path)
    assert base.gain is None and list(kd.mean_iou) == [1, 2]
    assert kd.gain[0] == pytest.approx(paired_gain(counts(2, shift=2)[:1], counts(2)[1:], samples=10)[0])
    lines = results_table([base, kd]).splitlines()
    assert lines[2].startswith("| base | 55.00 ± 7.07 | 0, 1 | – | 2.00 | 1.00 | 100 | 0 |")
    assert "| 1, 2 |" in lines[3] and lines[3].endswith("| 2.50 | 1.25 | 100 | 1,234 |")
    assert "camvid, test split: 40 images, whole image; 10 steps a run" in lines[5]


def test_results_without_a_baseline_are_refused(tmp_path):
    """A table of gains over nothing."""
    write_results([run_of("kd", 0)], [counts(1)[0]], "baseline", tmp_path)
    with pytest.raises(ValueError, match="'baseline' has no finished run"):
        read_results(tmp_path)
    with pytest.raises(ValueError, match="has no results.json"):
        read_results(tmp_path / "elsewhere")


def test_a_changed_setting_is_named_and_a_pinned_teacher_is_none():
    """Runs of two learning rates in one table would look like one budget."""
    assert changed_keys({"learning_rate": 1.0, "seed": 0}, {"learning_rate": 2.0, "seed": 0}) == ["learning_rate"]
    assert changed_keys({"teacher_revision": "abc", "output_dir": "a"}, {"resume": True, "output_dir": "b"}) == []


def test_a_queue_goes_on_with_another_folder_of_decoded_images():
    """Trained runs would have to be trained again because a disk was full."""
    earlier = {"data_dir": "CamVid/", "cache_dir": "/one"}
    assert changed_keys(earlier, {"data_dir": "CamVid", "cache_dir": "/two"}) == []
    assert changed_keys(earlier, {"data_dir": "other", "cache_dir": "/two"}) == ["data_dir"]


@pytest.fixture(scope="module")
def queue_of_runs(tmp_path_factory, teacher, module_without_figures):
    """Baseline and KD with one seed on synthetic scenes, through the script; the runs are trained in this process."""
    folder = tmp_path_factory.mktemp("benchmark")
    data = recipe(folder, max_steps=2, eval_steps=1, save_steps=1, losses={})
    options = ["--teacher", teacher, "--output_dir", str(folder / "out"), "--split", "test"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "subprocess", SimpleNamespace(run=trained_here, STDOUT=None))
        failed = benchmark.main([data, "--methods", "baseline", "kd", "--seeds", "0", *options])
    return failed, data, options, folder / "out"


def test_script_trains_scores_and_tabulates(queue_of_runs):
    """One command, as the README has it; images of the test split, not of the one that chose the checkpoint."""
    failed, _, _, out = queue_of_runs
    assert failed == 0
    baseline, kd = read_results(out)
    assert (baseline.method, kd.method) == ("baseline", "kd")
    assert baseline.facts["images"] == 2 and baseline.facts["split"] == "test" and kd.gain[1] <= kd.gain[0]
    assert (out / "gains.png").stat().st_size > 1000
    assert "| kd |" in (out / "table.md").read_text()


def test_script_keeps_what_is_done_and_adds_a_seed(queue_of_runs, monkeypatch):
    """A queue that starts over after an interruption is no queue."""
    _, data, options, out = queue_of_runs
    before = (out / "kd" / "seed0" / "scores.json").stat().st_mtime_ns
    (out / "kd" / "seed0" / "counts.safetensors").touch()
    started = []
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **_: started.append(command) or FAILED)
    assert benchmark.main([data, "--methods", "baseline", "kd", "--seeds", "0", "1", *options]) == 2
    assert [command[command.index("--seed") + 1] for command in started] == ["1", "1"]
    assert (out / "kd" / "seed0" / "scores.json").stat().st_mtime_ns == before
    assert len(json.loads((out / "results.json").read_text())["runs"]) == 2


class FAILED:
    """What `subprocess.run` returns for a run that ended with an error."""

    returncode = 1


def test_script_refuses_other_settings_in_the_same_folder(queue_of_runs):
    """Half a table with one learning rate and half with another."""
    _, data, options, _ = queue_of_runs
    with pytest.raises(SystemExit, match="was run with another learning_rate"):
        benchmark.main([data, "--methods", "baseline", *options, "--learning_rate", "0.5"])
    with pytest.raises(SystemExit, match="No method 'kdd'"):
        benchmark.main([data, "--methods", "kdd", *options])
    with pytest.raises(SystemExit, match="Unknown key in the recipe: 'learning_rat'"):
        benchmark.main([data, "--methods", "baseline", *options, "--learning_rat", "0.5"])


def test_a_queue_with_class_weights_from_a_formula_goes_on(tmp_path, monkeypatch):
    """The recipe of a finished run has numbers where the command has a formula: each second call was refused."""
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=trained_here, STDOUT=None))
    given = recipe(tmp_path, max_steps=1, eval_steps=1, save_steps=1, losses={})
    command = [given, "--methods", "baseline", "--seeds", "0", "--output_dir", str(tmp_path / "out")]
    weighted = "--losses.task.class_weights"
    assert benchmark.main([*command, weighted, "enet"]) == 0
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **kwargs: pytest.fail("trained again"))
    assert benchmark.main([*command, weighted, "enet"]) == 0
    with pytest.raises(SystemExit, match="was run with another losses.task.class_weights"):
        benchmark.main([*command, weighted, "inverse_frequency"])


def test_a_split_that_does_not_exist_is_refused_before_the_queue_begins(tmp_path, monkeypatch):
    """It was found out when the first run, of hours, was to be scored."""
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=lambda *args, **kwargs: pytest.fail("trained")))
    given = recipe(tmp_path, max_steps=1, losses={})
    with pytest.raises(SystemExit, match="has no split 'tset'. Did you mean 'test'?"):
        benchmark.main([given, "--split", "tset", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_report_alone_writes_the_same_table_again(queue_of_runs):
    """The committed files must give the committed table."""
    out = queue_of_runs[3]
    text = (out / "table.md").read_text()
    (out / "table.md").unlink()
    assert benchmark.main(["--report", str(out)]) == 0
    assert (out / "table.md").read_text() == text


def test_table_of_the_results_page_comes_from_the_committed_files():
    """A number that was edited by hand, or a result that was replaced, would otherwise stay unnoticed."""
    root = ROOT
    table = results_table(read_results(root / "benchmarks" / "results" / "camvid_espnet_c"))
    assert table in (root / "docs" / "results.md").read_text(encoding="utf-8")
