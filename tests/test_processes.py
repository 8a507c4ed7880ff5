"""Several processes train one model: the same result, every image once, and no process outlives another."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tiny import ODD, TINY, finish, start, wait_for

import capsnet
from capsnet import callbacks, cli, data, processes, runs, training
from capsnet.batches import Batches
from capsnet.commands import train
from capsnet.errors import ProcessLostError
from capsnet.processes import find_team, working_together

CPU = torch.device("cpu")


@pytest.fixture
def here():
    """The command in this process, as `tiny` has it in one of its own."""
    with tiny_command():
        yield lambda *arguments: cli.main(list(map(str, arguments)))


@contextlib.contextmanager
def tiny_command():
    few = data.open_dataset("mnist", "train").first(120), data.open_dataset("mnist", "test").first(120)
    sizes = {"conv_channels": 8, "primary_types": 2, "decoder_hidden": (16,)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "mnist", lambda split: few[split == "test"])
        patch.setattr(train, "sizes", lambda name, width: sizes)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, made in this one."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with tiny_command():
        assert cli.main(["train", *map(str, ODD), "--epochs", "4", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes of which the second was killed; how it ended, and after how many seconds."""
    place = tmp_path_factory.mktemp("killed")
    process = start("train", *ODD, "--epochs", 4, "--devices", 2, "--out", "run", cwd=place)
    wait_for((place / "run" / runs.CHECKPOINT).exists, process)
    (other,) = children_of(process)
    started = time.monotonic()
    os.kill(other, signal.SIGKILL)
    return place / "run", finish(process), time.monotonic() - started


def curve(folder):
    rows = csv.DictReader((folder / runs.METRICS).open())
    return [{name: float(value) for name, value in row.items() if "second" not in name} for row in rows]


def assert_same(folder, alone):
    for row, expected in zip(curve(folder), curve(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    together, single = load_file(folder / runs.WEIGHTS), load_file(alone / runs.WEIGHTS)
    for name, tensor in single.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=2e-4)
    reports = [json.loads((place / runs.REPORT).read_text()) for place in (folder, alone)]
    assert reports[0]["test_images"] == 120
    assert reports[0]["test_errors"] == reports[1]["test_errors"]
    configs = [json.loads((place / runs.CONFIG).read_text()) for place in (folder, alone)]
    assert configs[0] == configs[1]


def children_of(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 20])
def test_the_parts_of_a_batch_are_the_batch(count, step):
    digits = capsnet.open_dataset("mnist", "test").first(33)
    recipe = capsnet.Recipe(batch_size=16)
    whole = Batches(digits, digits, recipe).train_batch(0, step)
    images, shares, held_out = [], 0.0, 0
    for rank in range(count):
        batches = Batches(digits, digits, recipe)
        batches.share_out(rank, count)
        batch, part = batches.train_batch(0, step), batches.train_part(step)
        assert len(batch.images) == max(part.images, 1)  # never nothing to compute
        images.append(batch.images[: part.images])
        shares += part.share
        held_out += batches.held_out_part(0).images
    assert torch.cat(images).equal(whole.images)
    assert shares == pytest.approx(1)
    assert held_out == 33


def test_two_processes_train_as_one(alone, tmp_path):
    status, out, err = finish(start("train", *ODD, "--epochs", 4, "--devices", 2, "--out", "run", cwd=tmp_path))
    assert status == 0, err
    assert_same(tmp_path / "run", alone)
    assert err.count("epoch 4/4") == out.count("test error") == 1
    assert "testing on 120 images" in err
    assert len(err.splitlines()) == 5, err
    assert json.loads((tmp_path / "run" / runs.REPORT).read_text())["processes"] == 2


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in Linux's /proc")


@needs_proc
def test_a_killed_process_ends_the_run_which_goes_on_with_another_number_of_them(alone, killed, tmp_path, here):
    folder, (status, out, err), seconds = killed
    assert seconds < 30
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == (
        "capsnet: process 1 of 2 was killed (signal 9); the last checkpoint is intact; "
        "go on with: capsnet train --resume --devices 2 --out run"
    )
    assert "Traceback" not in err
    shutil.copytree(folder, tmp_path / "run")
    assert here("train", "--resume", "--out", tmp_path / "run") == 0
    assert_same(tmp_path / "run", alone)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_first_process_leaves_no_orphan(tmp_path, number):
    process = start("train", *ODD, "--epochs", 500, "--devices", 2, "--out", "run", cwd=tmp_path)
    wait_for((tmp_path / "run" / runs.CHECKPOINT).exists, process)
    (other,) = children_of(process)
    process.send_signal(number)
    status, out, err = finish(process)
    deadline = time.monotonic() + 10
    while alive(other) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(other)
    assert out == ""
    assert "Traceback" not in err
    step = torch.load(tmp_path / "run" / runs.CHECKPOINT, weights_only=True)["global_step"]
    if number == signal.SIGTERM:
        assert status == 130
        told = rf"capsnet: interrupted in epoch \d+, step {step}; the checkpoint is kept; go on with: .* --devices 2 .*"
        assert re.fullmatch(told, err.splitlines()[-1])


def test_srun_starts_processes_that_share_no_disk(alone, tmp_path):
    environment = {
        **{"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
        **{
            "SLURM_STEP_ID": "0",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_LOCALID": "0",
            "MASTER_PORT": str(processes.find_free_network_port()),
        },
    }
    started = []
    for rank in "01":
        (tmp_path / rank).mkdir()
        own = {**environment, "SLURM_PROCID": rank, "SLURM_NODEID": rank}
        started.append(start("train", *ODD, "--epochs", 4, "--out", "run", cwd=tmp_path / rank, **own))
    (status, out, err), other = [finish(process) for process in started]
    assert status == 0, err
    assert "test error" in out
    assert other == (0, "", "")
    assert not list((tmp_path / "1").iterdir())
    assert_same(tmp_path / "0" / "run", alone)


@needs_proc
def test_torchrun_on_two_machines_resumes_from_the_disk_of_the_first(alone, killed, tmp_path):
    for machine in "01":
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "program.py").write_text(TINY)
    shutil.copytree(killed[0], tmp_path / "0" / "run")
    (tmp_path / "1" / "run").mkdir()
    shutil.copy(killed[0] / runs.CONFIG, tmp_path / "1" / "run")
    address = ("--master-addr", "127.0.0.1", "--master-port", processes.find_free_network_port())
    started = [
        start(
            *("--nnodes", 2, "--nproc-per-node", 1, "--node-rank", machine, *address),
            *("program.py", "train", "--resume", "--out", "run"),
            cwd=tmp_path / machine,
            program=("-m", "torch.distributed.run"),
        )
        for machine in "01"
    ]
    for process in started:
        status, _, err = finish(process)
        assert status == 0, err
    assert_same(tmp_path / "0" / "run", alone)
    assert [path.name for path in (tmp_path / "1" / "run").iterdir()] == [runs.CONFIG]


SCRIPT = """
import os, capsnet, torch
digits = capsnet.open_dataset("mnist", "test").first(20)
variables = dict(os.environ)
for seed in (0, 1):
    torch.manual_seed(seed + int(os.environ.get("LOCAL_RANK", "0")))  # the first one's weights count
    model = capsnet.CapsNet((1, 28, 28), 10, conv_channels=8, primary_types=2, decoder=False)
    rows = capsnet.fit(model, digits, capsnet.Recipe(epochs=1, batch_size=8), device="cpu", devices=2, progress=False)
    total = sum(float(parameter.detach().double().abs().sum()) for parameter in model.parameters())
    said = os.environ.get("LOCAL_RANK", "0"), seed, rows[0]["loss_mean"], total, torch.get_num_threads()
    os.write(1, (" ".join(map(str, said)) + "\\n").encode())  # whole: both write into one pipe
assert dict(os.environ) == variables
"""


def test_a_script_that_trains_twice_ends_with_the_same_weights_in_every_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    status, out, err = finish(start(cwd=tmp_path, program=("script.py",)))
    assert (status, err) == (0, "")
    said = {tuple(line.split()[:2]): line.split()[2:] for line in out.splitlines()}
    assert set(said) == {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}
    assert said["0", "0"] == said["1", "0"] != said["0", "1"] == said["1", "1"]


def test_cores_are_shared_and_given_back(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    with processes.working_together(processes.Team(CPU)):
        torch.set_num_threads(before + 1)  # as Lightning does, with each one's share
        os.environ["OMP_NUM_THREADS"] = str(before + 1)
    assert torch.get_num_threads() == before
    assert "OMP_NUM_THREADS" not in os.environ


def test_who_trains_is_told_by_the_launcher_or_by_the_call(monkeypatch):
    assert find_team(CPU).size == 1
    assert find_team(CPU, 3).starts_others
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}
    for name, value in {**slurm, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    team = find_team(CPU)
    assert (team.devices, team.nodes, team.rank, team.starts_others) == (2, 2, 3, False)
    with pytest.raises(capsnet.InputError, match="4 devices on 1 nodes are asked for, but 2 processes on each of 2"):
        find_team(CPU, 4)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(capsnet.InputError, match=r"SLURM: .*--ntasks-per-node"):
        find_team(CPU)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(capsnet.InputError, match="4 tasks, but nobody has started the others; start this by srun"):
        find_team(CPU)


SRUN = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("variables", [SRUN, TORCHRUN])
@pytest.mark.parametrize("value", ["abc", "", "-1", "2(x2)", "99999999999999999999", "7" * 4301])
def test_a_variable_that_holds_no_such_number_is_named(monkeypatch, variables, value):
    launched = {**variables, "SLURM_STEP_ID": "0"} if variables is SRUN else {**variables, "TORCHELASTIC_RUN_ID": "x"}
    for name, right in launched.items():
        monkeypatch.setenv(name, right)
    assert find_team(CPU).size == 2
    for name in variables:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(capsnet.InputError, match=f"the environment variable {name} should be a number"):
                find_team(CPU)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_named(monkeypatch, capfd, rank):
    port = str(processes.find_free_network_port())
    own = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**SRUN, **own, "SLURM_PROCID": str(rank)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(processes, "QUIET", 0.2)
    monkeypatch.setattr(processes, "LONGEST", 0.5)
    team = find_team(CPU)
    with pytest.raises(ProcessLostError, match=f"process {1 - rank} of 2 did not come"), working_together(team):
        pytest.fail("it has to wait")
    assert capfd.readouterr().err.splitlines()[0] == f"waiting for process {1 - rank} of 2 …"
    assert "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize("parent", ["", "1", "xyz", None])
def test_variables_left_by_another_training_make_no_difference(monkeypatch, parent):
    left = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "0", "LOCAL_RANK": "1"}
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    if parent is not None:
        monkeypatch.setenv(processes.PARENT, parent)
    assert find_team(CPU).rank == 0
    team = find_team(CPU, 2)
    assert (team.rank, team.starts_others) == (0, True)
    assert cli._which_process() == ""


def test_one_process_trains_whatever_another_training_left(monkeypatch, here, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(processes.PARENT, "1")
    assert here("train", *ODD, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / runs.REPORT).exists()


def test_there_are_no_more_processes_than_a_machine_can_carry():
    with pytest.raises(capsnet.InputError, match=r"100000 processes are too many for the \d+ cores of this machine"):
        find_team(CPU, 100_000)


def test_what_cannot_be_is_told(monkeypatch):
    with pytest.raises(capsnet.InputError, match="at least 1, not 0 and 1"):
        find_team(CPU, 0)
    with pytest.raises(capsnet.InputError, match="torchrun or srun"):
        find_team(CPU, 2, 2)
    with pytest.raises(capsnet.InputError, match="want a GPU each, but this machine has"):
        find_team(torch.device("cuda"), 4096)
    with pytest.raises(capsnet.InputError, match="on mps training takes one device"):
        find_team(torch.device("mps"), 2)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(capsnet.InputError, match="in a notebook, training takes one device"):
        find_team(CPU, 2)


def test_a_process_that_finds_its_input_wrong_is_quoted(tmp_path):
    # The second process sees other images, as it might on a machine whose disk holds another version of them.
    program = TINY.replace("slice(None,", "slice(int(__import__('os').environ.get('LOCAL_RANK', 0)),")
    process = start("train", *ODD, "--devices", 2, "--out", "run", cwd=tmp_path, program=("-c", program))
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(
        "capsnet: process 1 of 2 failed: process 1: this process was given another model, recipe or training set"
    )


def test_ctrl_c_while_pytorch_is_being_imported_shows_one_line():
    process = subprocess.Popen([sys.executable, "-m", "capsnet", "bench"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "\ncapsnet: interrupted\n")


def test_the_version_is_told_without_importing_anything_slow():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "capsnet", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"capsnet \d+\.\d+\.\d+\n", done.stdout)
    assert " torch" not in done.stderr


def test_sums_of_two_processes_do_not_depend_on_the_checkpoints(monkeypatch):
    # What the others have counted goes to the first process when it is gathered, and is not counted again.
    gathered = []
    digits = capsnet.open_dataset("mnist", "test").first(1)
    recorder = callbacks.Recorder(Batches(digits, None, capsnet.Recipe()), None, digits)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: gathered.append(tensor.clone()))
    other = Trainer(logger=False, enable_checkpointing=False)
    monkeypatch.setattr(Trainer, "world_size", 2)
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    recorder._add({"loss": torch.tensor(9.0), "errors": torch.tensor(3.0)})
    assert recorder._gather(other) == {"errors": 3.0}
    assert recorder.sums == {"errors": 0.0}
    recorder._add({"errors": torch.tensor(2.0)})
    assert recorder._gather(other) == {"errors": 2.0}


def test_other_processes_need_not_see_the_folder_of_a_run_that_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "find_team", lambda *_: processes.Team(CPU, nodes=2, rank=1))
    monkeypatch.setattr(training, "working_together", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(training, "_train", lambda *_: [{"epoch": 1}])
    model = capsnet.CapsNet((1, 28, 28), 10, conv_channels=8, primary_types=2, decoder=False)
    images = data.open_dataset("mnist", "train").first(4)
    assert capsnet.fit(model, images, out=tmp_path / "elsewhere", resume=True, device="cpu") == [{"epoch": 1}]


def test_of_several_processes_the_first_reports_on_a_run_that_was_stopped_before(alone, here, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / runs.REPORT).unlink()
    monkeypatch.setattr(processes, "find_team", lambda *_: processes.Team(CPU, devices=2, rank=1))
    with runs.locked(run):  # by the first
        assert here("train", "--resume", "--out", run) == 0
    assert not (run / runs.REPORT).exists()
