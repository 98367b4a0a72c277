"""study/runs.py on the workers of a Dask scheduler: the same records, nothing lost, nothing twice, none of another kind."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from small import SMALL

from gpt import load_pretrained
from study import runs
from study.design import runs_of
from study.runs import NUMERICS, perform, record_path, run_missing, task_of

distributed = pytest.importorskip("distributed", reason="Dask is an optional extra")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(monkeypatch):
    """Two workers of a Dask scheduler, each a process that can import the study and its tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))
    monkeypatch.chdir(ROOT)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


@pytest.mark.slow
def test_dasks_workers_make_the_same_records_though_one_is_killed(tiny_llama_folder, tmp_path, monkeypatch, cluster):
    device, written = torch.device("cpu"), []

    def write(path, lines):
        write_lines(path, lines)
        written.append(path.stem)
        if len(written) == 2:
            os.kill(cluster.workers[0].process.pid, signal.SIGKILL)

    write_lines = runs.write_lines
    monkeypatch.setattr(runs, "write_lines", write)
    wanted = runs_of(SMALL, lambda run: None)
    run_missing(SMALL, tmp_path, 1, tiny_llama_folder, device, cluster.scheduler_address)
    assert sorted(written) == sorted(run.name for run in wanted) and len(written) == 2 * 2 * 3  # all, and none twice
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    base, tokenizer = load_pretrained(tiny_llama_folder)
    for run in wanted:
        made = json.loads(record_path(tmp_path, run).read_text())
        here = json.loads(json.dumps(perform(SMALL, run, SMALL.task(*task_of(run)), base, tokenizer)))
        assert {key: made[key] for key in here} == here
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_worker_of_another_kind_is_refused(tiny_llama_folder, tmp_path, monkeypatch, cluster):
    monkeypatch.setattr(runs, "NUMERICS", NUMERICS + 1)  # here, not there
    with pytest.raises(ValueError, match=r"would make another record \(numerics 1 instead of 2\)"):
        run_missing(SMALL, tmp_path, 1, tiny_llama_folder, torch.device("cpu"), cluster.scheduler_address)
    assert list(tmp_path.iterdir()) == []


def test_no_scheduler_no_workers_no_dask(tmp_path, tiny_llama_folder, monkeypatch):
    def start(address):
        run_missing(SMALL, tmp_path, 1, tiny_llama_folder, torch.device("cpu"), address)

    with pytest.raises(ValueError, match="no Dask scheduler answers at nonsense://x"):
        start("nonsense://x")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="has no workers: start some"):
            start(cluster.scheduler_address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match="pip install distributed"):
        start("tcp://127.0.0.1:1")
