"""The whole of scripts/gpu.sh, on this machine's CPU with tiny rows: from the first part to the tables."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu_pack
import gpu_unpack
import pytest
import readme_table
import tiny_capsnet

from capsnet import runs
from capsnet.errors import InputError
from capsnet.experiments.records import read_record
from capsnet.experiments.rows import ROWS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu.sh"
ARCHIVE = "gpu-results.tar.gz"
MADE = ("mnist-best-4-epochs-seed-0", "mnist-best-4-epochs-seed-1", "multimnist-best-4-epochs-seed-0")


def gpu(out, seconds, **environment):
    """The script, as on a machine that has nothing but what is there and what is carried along."""
    bare = {"PYTHONPATH": str(ROOT / "tests" / "bare_machine"), "OMP_NUM_THREADS": "1"}
    tiny = {"DEVICE": "cpu", "PYTHON": sys.executable, "CAPSNET": f"{sys.executable} {tiny_capsnet.__file__}"}
    environment = {**os.environ, **bare, **tiny, **environment}
    done = subprocess.run([SCRIPT, str(seconds), out], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "out"
    groups = "40 1 no-such-row\n60 1 multimnist-best\n100 2 mnist-best"
    return out, gpu(out, 1200, GROUPS_OF_ROWS=groups)  # enough for a busy machine; it ends when all is done


def test_the_script_goes_through_all_its_parts_whatever_fails(dry_run):
    out, told = dry_run
    for name, how in {"tests": "done", "bench": "done", "runs-1": "exit 2", "runs-2": "done", "runs-3": "done"}.items():
        assert f"\n{name}: {how} after " in told
    assert "runs-1: capsnet: unknown row 'no-such-row'" in told
    assert "there is no GPU that CUDA can use" in (out / "tests.log").read_text()
    assert " skipped" in told
    assert "batch_size 2, what train, capsnet 1.5" in told
    assert all(f"\n{name}: error " in told for name in MADE)
    assert len(told.splitlines()) <= 100
    with tarfile.open(out / ARCHIVE) as archive:
        names = archive.getnames()
    assert {f"results/runs/{name}.json" for name in MADE} <= set(names)
    assert {"gpu/bench.json", "gpu/tests.log", f"runs/{MADE[0]}/metrics.csv"} <= set(names)
    assert (out / ARCHIVE).stat().st_size < 16e6


def test_what_was_made_comes_out_of_the_archive(dry_run, tmp_path, capsys):
    archive, results = dry_run[0] / ARCHIVE, tmp_path / "results"
    shutil.copytree(ROOT / "results" / "runs", results / "runs")
    before = {path.name: path.read_bytes() for path in (results / "runs").iterdir()}
    gpu_unpack.unpack(archive, results)
    now = {path.name: path.read_bytes() for path in (results / "runs").iterdir()}
    assert now.keys() - before.keys() == {f"{name}.json" for name in MADE}
    assert now | before == now
    record = read_record(results / "runs" / f"{MADE[1]}.json")
    assert (record["epochs"], record["seed"], len(record["curve"])) == (4, 1, 4)
    assert record["command"].startswith("capsnet reproduce mnist-best --budget ")
    (day,) = (results / "gpu").iterdir()
    assert (day / "bench.json").exists()
    assert runs.read_metrics(day / MADE[1])[-1]["epoch"] == 4

    place = results / "runs" / f"{MADE[1]}.json"
    place.write_text(json.dumps({**record, "seconds": 3}))
    capsys.readouterr()
    gpu_unpack.unpack(archive, results)
    assert f"{place} is another run and is kept" in capsys.readouterr().err
    assert read_record(place)["seconds"] == 3
    gpu_unpack.unpack(archive, results, replace=True)
    assert read_record(place) == record


def test_the_readme_of_the_checkout_gets_its_table_anew(dry_run, tmp_path, monkeypatch):
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(gpu_unpack, "ROOT", tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["gpu_unpack.py", str(dry_run[0] / ARCHIVE), "--results", str(tmp_path / "results")]
    )
    gpu_unpack.main()
    text = (tmp_path / "README.md").read_text()
    assert text.partition(readme_table.BEGIN)[2].count("no run") == len(ROWS)  # tiny rows are others and do not count


def test_an_archive_with_a_damaged_record_is_refused_as_a_whole(dry_run, tmp_path):
    with tarfile.open(dry_run[0] / ARCHIVE) as archive:
        archive.extractall(tmp_path / "in", filter="data")
    (tmp_path / "in" / "results" / "runs" / f"{MADE[2]}.json").write_text("{}")
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / "in", ".")
    with pytest.raises(InputError, match="damaged"):
        gpu_unpack.unpack(tmp_path / ARCHIVE, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_the_script_ends_with_its_budget_and_still_leaves_an_archive(tmp_path):
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(100)\n")
    started = time.monotonic()
    told = gpu(tmp_path / "out", 20, PYTHON=sys.executable, CAPSNET=f"{sys.executable} {tmp_path / 'hang.py'}")
    assert time.monotonic() - started < 30
    assert "cut off after" in told
    assert "left out, no time is left" in told
    with tarfile.open(tmp_path / "out" / ARCHIVE) as archive:
        assert "gpu/parts.txt" in archive.getnames()


def test_the_archive_stays_small_and_the_summary_short_whatever_there_is(tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    (out / "parts.txt").write_text("budget\n" * 200)
    (out / "tests.log").write_bytes(b"x" * 1000 + b"the end\n")
    (out / "bench.json").write_text("")  # it was cut off
    (out / "bench.log").write_text('warm-up\n{"batch_size": 128, "what": "train", "capsnet": 1234.5, "all": [1]}\n')
    for name, size in (("small", 100), ("large", 10_000)):
        (work / "runs" / "reproduce" / name).mkdir(parents=True)
        (work / "runs" / "reproduce" / name / "model.safetensors").write_bytes(os.urandom(size))
    monkeypatch.setattr(gpu_pack, "LIMIT", 8000)
    monkeypatch.setattr(gpu_pack, "LOG_LIMIT", 100)
    gpu_pack.pack(work, out, weights=True)
    with tarfile.open(out / ARCHIVE) as archive:
        assert archive.extractfile("gpu/tests.log").read() == b"x" * 92 + b"the end\n"
        assert [name for name in archive.getnames() if name.startswith("runs/")] == ["runs/small/model.safetensors"]
    told = gpu_pack.summary(work, out)
    assert len(told) == 100
    (out / "parts.txt").write_text("budget\n")
    assert "batch_size 128, what train, capsnet 1234" in "\n".join(gpu_pack.summary(work, out))


def test_a_wrong_call_is_told(tmp_path):
    (tmp_path / "mine.log").touch()
    for words, told in (
        (["soon"], "usage: scripts/gpu.sh SECONDS OUT"),
        (["60", tmp_path], f"the folder {tmp_path} is not empty"),
    ):
        done = subprocess.run([SCRIPT, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"{told}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.log"]
