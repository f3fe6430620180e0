"""The configurations of scripts/accelerate: accelerate reads each, and two processes are two."""

import os
import subprocess
import sys

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from helpers.paths import ROOT

FOLDER = ROOT / "scripts" / "accelerate"
PROCESSES = {"cpu": 1, "cpu_2_processes": 2, "gpu": 1, "gpu_fp16": 1, "multi_gpu": 8, "two_nodes": 16}


def test_every_case_has_a_file():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_reads_it(name):
    """A misspelled key is refused by accelerate only when it is launched, on the cluster."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.num_processes == PROCESSES[name] and config.num_machines == (2 if name == "two_nodes" else 1)


@pytest.mark.parametrize("name", [pytest.param("cpu", marks=pytest.mark.slow), "cpu_2_processes"])
def test_launch_starts_as_many_processes_as_it_says(name, tmp_path):
    """accelerate's own way of asking for two CPU processes starts one, and says nothing."""
    script = tmp_path / "count.py"
    lines = ("from accelerate import PartialState", "from pathlib import Path", "state = PartialState(cpu=True)")
    mark = f"Path({str(tmp_path)!r}, f'{{state.process_index}} of {{state.num_processes}}').touch()"
    script.write_text("\n".join([*lines, mark, "state.wait_for_everyone()", ""]))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml"), str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=120, env=environment)
    found = sorted(path.name for path in tmp_path.glob("* of *"))
    assert found == [f"{rank} of {PROCESSES[name]}" for rank in range(PROCESSES[name])], (
        run.stdout + run.stderr[-2000:]
    )
