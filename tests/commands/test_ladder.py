"""`hf-segkd ladder`: which student is proposed, what is measured, and where its scores come from."""

import json
import re
import sys

import pytest
import yaml

from helpers.commands import script
from helpers.paths import ROOT
from hf_segkd.deployment.runtimes import median_ms, open_runtime
from hf_segkd.loading.student_names import STUDENTS
from hf_segkd.reports.published_scores import PUBLISHED_SCORES

SMALL = ["--size", "32", "48", "--num_labels", "5"]


def rows_of(*macs):
    return [{"student": f"student{index}", "macs": value} for index, value in enumerate(macs)]


def test_the_most_operations_within_the_budget_are_proposed():
    """The slowest that fits is no larger for it, and the first that fits is the smallest."""
    ladder, times = script("ladder"), {"student0": 10.0, "student1": 9.0, "student2": 30.0, "student3": 31.0}
    rows = rows_of(100, 200, 300, 400)
    ladder.measure(rows, 30.0, lambda row: times[row["student"]])
    assert [row["fits"] for row in rows] == [True, True, True, False]
    assert ladder.largest(rows)["student"] == "student2"


def test_students_far_beyond_the_budget_are_not_measured():
    """A ResNet-101 takes minutes on a machine whose budget only the smallest meets."""
    ladder, measured = script("ladder"), []

    def time_of(row):
        measured.append(row["student"])
        return row["macs"] / 10

    rows = rows_of(100, 110, 120, 130, 140, 150, 1000, 1001, 5000)  # at 10 a millisecond, 5 * 20 ms are 1000
    ladder.measure(rows, 20.0, time_of)
    assert measured == [f"student{index}" for index in range(7)]
    assert [row["p50_ms"] for row in rows[6:]] == [100.0, None, None]
    assert ladder.largest(rows)["student"] == "student5"


def test_one_slow_network_does_not_end_the_ladder():
    """The smallest are depthwise and slow for their MACs: dense ones behind them may be faster."""
    ladder, times = script("ladder"), {"student0": 500.0, "student1": 80.0}
    rows = rows_of(100, 1000)
    ladder.measure(rows, 90.0, lambda row: times[row["student"]])
    assert ladder.largest(rows)["student"] == "student1"


def test_table_is_of_what_was_measured():
    """Fifty lines of "not measured" hide the few that answer the question."""
    ladder = script("ladder")
    facts = {"parameters": 10**6, "macs": 10**9, "published_miou": None, "source": None}
    rows = [{"student": f"student{index}", "p50_ms": None, "fits": False} | facts for index in range(3)]
    rows[0] |= {"p50_ms": 7.25, "fits": True}
    lines = ladder.table(rows).splitlines()
    assert lines[2].split() == ["student0", "1.00", "1.00", "7.2", "yes", "-"]
    assert lines[4:] == ["2 larger ones, from student1 up, are far beyond the budget."]


@pytest.mark.parametrize(("load", "note"), [(1.9, ""), (11.6, "load 12 on 2 cores")])
def test_a_busy_machine_is_named(load, note, monkeypatch):
    """Times of a machine that does something else besides would be taken for the student's."""
    ladder = script("ladder")
    monkeypatch.setattr(ladder.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    monkeypatch.setattr(ladder.os, "cpu_count", lambda: 2)
    assert note in ladder.other_work() and bool(ladder.other_work()) == bool(note)


def test_without_a_fit_the_nearest_is_named(monkeypatch, capsys):
    """An empty answer leaves open whether the budget is missed by a little or by far."""
    ladder = script("ladder")
    monkeypatch.setattr(ladder, "milliseconds", lambda fields, arguments: 10 * fields["width"])
    ladder.main([*SMALL, "--budget_ms", "4", "--families", "espnetv2"])
    printed = capsys.readouterr().out
    assert "None fits 4 ms; espnetv2-0.5 is nearest with 5.0 ms" in printed


def test_table_names_the_source_of_each_score(monkeypatch, capsys):
    """mIoU on CamVid and on Cityscapes side by side, unnamed, would be compared."""
    ladder = script("ladder")
    monkeypatch.setattr(ladder, "milliseconds", lambda fields, arguments: 1.0)
    rows = ladder.main([*SMALL, "--budget_ms", "4", "--students", "espnet-c", "espnetv2-0.5"])
    printed = capsys.readouterr().out
    assert [row["student"] for row in rows] == ["espnetv2-0.5", "espnet-c"]  # from the fewest operations up
    assert re.search(r"espnet-c .* yes +56\.7 -> 64\.1 +CamVid test", printed)
    assert "espnet-c has the most MACs of those that fit 4 ms" in printed


def test_json_is_all_that_is_on_stdout(monkeypatch, capsys):
    """One line of progress among it and no program can read it."""
    ladder = script("ladder")
    monkeypatch.setattr(ladder, "milliseconds", lambda fields, arguments: 1.0)
    ladder.main([*SMALL, "--budget_ms", "4", "--students", "espnetv2-0.5", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["proposed"] == "espnetv2-0.5" and report["rows"][0]["p50_ms"] == 1.0
    assert report["rows"][0]["published_miou"] == "53.9"


def test_each_network_is_a_candidate_once():
    """`mobilenetv2` and `deeplabv3-mbv2` are one network: measured twice, it would take twice the time."""
    ladder = script("ladder")
    found = ladder.candidates(None, list(ladder.FAMILIES))
    assert len(found) == len({str(fields) for fields in STUDENTS.values()})
    assert {fields["model_type"] for fields in STUDENTS.values()} == set(ladder.FAMILIES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget_ms", "4", "--students", "espnet-d"], "Did you mean 'espnet-c'"),
        (["--budget_ms", "0"], "budget_ms must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(argv, message):
    """After half an hour of measuring, nobody wants to learn of a typing error."""
    with pytest.raises(SystemExit, match=message):
        script("ladder").main(argv)


@pytest.mark.parametrize("name", PUBLISHED_SCORES)
def test_published_scores_are_those_of_the_table_of_networks(name):
    """Two lists of the same numbers drift apart, and one of them is then invented."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if " | `{model_type" in line]
    texts = [row[-1] for row in cells if yaml.safe_load(row[1].strip("`")) == STUDENTS[name]]
    score, source = PUBLISHED_SCORES[name]
    assert any(text.removeprefix("T ").startswith(score) for text in texts), texts
    assert ("test" in texts[0] or "CamVid" in texts[0]) == ("test" in source)
    assert ("ADE20K" in texts[0]) == ("ADE20K" in source)


@pytest.mark.slow
def test_students_are_timed_in_onnxruntime(capsys):
    """The one run without a stub: a file that the runtime refuses would be found here alone."""
    pytest.importorskip("onnxscript")
    argv = [*SMALL, "--budget_ms", "60000", "--students", "espnet-c", "--repeats", "2", "--threads", "1"]
    (row,) = script("ladder").main(argv)
    assert row["p50_ms"] > 0 and row["fits"]
    assert "32 x 48 pixels, 5 classes, onnxruntime, fp32, 1 thread," in capsys.readouterr().out


def test_a_missing_runtime_says_how_to_get_it(monkeypatch, tmp_path):
    """`No module named 'openvino'` leaves the name of the package to be guessed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-segkd\[openvino\]'"):
        open_runtime(tmp_path / "student.onnx", "openvino", 1)
    with pytest.raises(ValueError, match="runtime must be one of"):
        open_runtime(tmp_path / "student.onnx", "openvin", 1)


def test_first_passes_do_not_count():
    """They load code and fill caches: with two passes, their mean would be the first one's."""
    calls = []
    assert median_ms(calls.append, "images", repeats=3, warmup=2) >= 0
    assert len(calls) == 5
