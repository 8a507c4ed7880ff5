import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from process import run_python
from sleepy import sleepy_side
from tiny import wait_for

from capsnet import cli, runs
from capsnet.benchmark import compare, report, sides, stages, workers
from capsnet.benchmark.compare import Comparison
from capsnet.benchmark.sides import Side, sides_on
from capsnet.benchmark.textbook import TextbookCapsNet
from capsnet.benchmark.workers import Job, SideError, Worker
from capsnet.commands.bench import Bench
from capsnet.models import CapsNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIDES = [*sides.CPU_SIDES, *sides.COMPILED_CPU_SIDES, *sides.CUDA_SIDES]


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_each_side_learns_and_answers_in_the_precision_that_it_names(side, monkeypatch):
    losses, halves, modes = [], [], []

    def spy(kind):
        loss, forward = kind.loss, kind.forward

        def spied_loss(model, images, labels):
            outcome = loss(model, images, labels)
            losses.append((outcome if isinstance(outcome, torch.Tensor) else outcome.total).item())
            return outcome

        def spied_forward(model, images):
            halves.append(torch.is_autocast_enabled("cpu"))
            return forward(model, images)

        monkeypatch.setattr(kind, "loss", spied_loss)
        monkeypatch.setattr(kind, "forward", spied_forward)

    def compile_(function, *, mode, dynamic):
        assert not dynamic
        modes.append(mode)
        return function

    spy(TextbookCapsNet)
    spy(CapsNet)
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    steps = side.build(*workers._digits(2, 20, CPU), CPU)
    for _ in range(3):
        steps.train()
    steps.infer()
    assert losses[2] < losses[0]
    assert halves == 4 * [side.precision == "bfloat16"]
    named = {"textbook compiled": "reduce-overhead" if side in sides.CUDA_SIDES else "default"}
    named |= {"textbook bf16 compiled": "default", "expert": "max-autotune"}
    assert set(modes) == ({named[side.name]} if side.name in named else set())


def test_the_careful_textbook_is_in_channels_last_from_its_first_layer_on():
    model = TextbookCapsNet(20)
    images = torch.rand(2, 1, 20, 20)
    plain = model.conv(images)
    assert not plain.is_contiguous(memory_format=torch.channels_last)
    model.to_channels_last()
    features = model.conv(images)
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(features, plain)
    assert model.weight.is_contiguous()


@pytest.mark.parametrize("pixels", [28, 36, 40])
def test_both_networks_are_of_one_size(pixels):
    count = [
        sum(p.numel() for p in model.parameters())
        for model in (TextbookCapsNet(pixels), CapsNet((1, pixels, pixels), 10))
    ]
    assert count[0] == count[1]
    images, labels = workers._digits(3, pixels, CPU)
    assert images.shape == (3, 1, pixels, pixels)
    assert images[:, :, :, : (pixels - 28) // 2].sum() == 0
    assert TextbookCapsNet(pixels).loss(images, labels).isfinite()


def test_after_the_last_digit_comes_the_first_one():
    images, labels = workers._digits(2003, 28, CPU)
    assert len(images) == len(labels) == 2003
    assert images[:3].equal(workers._digits(3, 28, CPU)[0])


def test_without_bfloat16_instructions_only_float32_is_compared(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert [side.name for side in sides_on(CPU)] == ["textbook", "capsnet"]
    assert [side.name for side in sides_on(CPU, compiled=True)] == ["textbook", "capsnet", "textbook compiled"]
    assert [side.name for side in sides_on(torch.device("mps"))] == ["textbook", "capsnet"]


# Processes


def test_a_process_answers_or_says_why_not():
    worker = Worker(Job(Side("", "float32", sleepy_side), 1, 28, CPU))
    try:
        worker.send("train", 3)
        with pytest.raises(SideError, match="not ready in time"):
            worker.receive(until=time.monotonic())
        seconds = worker.receive()
        assert len(seconds) == 3
        assert min(seconds) >= 0.01
        with pytest.raises(SideError, match=r"^RuntimeError: out of memory$"):
            worker.ask("infer")
        assert len(worker.ask("memory")) == 1
        worker.process.kill()
        with pytest.raises(SideError, match="its process has ended"):
            worker.ask("train")
    finally:
        worker.close()


# Turns, with workers that answer at once


SECONDS = {"textbook": 0.5, "textbook compiled": 0.25, "textbook bf16": 0.2, "expert": 0.1, "capsnet": 0.05}
SECONDS |= {"capsnet bf16": 0.04, "textbook bf16 compiled": 0.16}


class FakeWorker:
    """Each step takes a tenth of a second for every ten images, or as long as the table says."""

    failing = ()
    now = 0.0

    def __init__(self, job):
        self.job = job
        self.open = True

    def send(self, task, steps=1):
        self.request = task, steps

    def receive(self, until=math.inf):
        name, size = self.job.side.name, self.job.batch_size
        task, steps = self.request
        if (name, size, task) in self.failing:
            raise SideError("out of memory")
        if task == "memory":
            return [1000 * SECONDS[name]]
        seconds = SECONDS[name] * (1 if task == "train" else 0.1)
        FakeWorker.now += seconds * steps
        return [seconds] * (steps if size == 1 else 1)

    def ask(self, task, steps=1):
        assert self.open
        self.send(task, steps)
        return self.receive()

    def close(self):
        self.open = False


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(compare, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "failing", ())
    monkeypatch.setattr(FakeWorker, "now", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: FakeWorker.now)
    return FakeWorker


def _compared(sides, sizes, device=CPU, deadline=math.inf):
    comparison = Comparison(sides, 28, device, rounds=2, deadline=deadline)
    comparison.measure(sizes)
    return comparison, {(row["batch_size"], row["what"]): row for row in comparison.rows}


@pytest.mark.usefixtures("fake")
def test_each_precision_is_compared_with_the_best_of_the_others():
    _, rows = _compared([*sides.CPU_SIDES, *sides.COMPILED_CPU_SIDES], (8,))
    assert list(rows) == [(8, "train"), (8, "peak memory"), (8, "infer")]
    train = rows[8, "train"]
    assert train["textbook compiled"] == pytest.approx(8 / 0.25)
    assert train["ratio"] == pytest.approx(10)  # capsnet and the plain textbook
    best = {entry["side"]: entry for entry in train["best"]}
    assert (best["capsnet"]["precision"], best["capsnet"]["other"]) == ("float32", "textbook compiled")
    assert best["capsnet"]["ratio"] == pytest.approx(5)
    assert (best["capsnet bf16"]["precision"], best["capsnet bf16"]["other"]) == ("bfloat16", "textbook bf16 compiled")
    assert best["capsnet bf16"]["ratio_range"] == pytest.approx([4, 4])
    assert [entry["ratio"] for entry in rows[8, "peak memory"]["best"]] == pytest.approx([5, 4])


@pytest.mark.usefixtures("fake")
def test_a_precision_that_we_do_not_compute_in_is_compared_too():
    _, rows = _compared(sides.CUDA_SIDES, (8, 16), CUDA)
    assert [row for row in rows if row[1] == "train"] == [(8, "train"), (16, "train")]
    best = [(entry["precision"], entry["other"], entry["ratio"]) for entry in rows[16, "train"]["best"]]
    assert best == [("float32", "textbook", pytest.approx(10)), ("bfloat16", "expert", pytest.approx(2))]


@pytest.mark.usefixtures("fake")
def test_of_single_images_latency_is_reported():
    _, rows = _compared(sides.CPU_SIDES[:1], (1,))
    assert rows[1, "infer"]["textbook"] == pytest.approx(20)
    assert rows[1, "latency"]["textbook"] == pytest.approx(50)
    assert rows[1, "latency"]["textbook_p99"] == pytest.approx(50)


def test_a_side_that_fails_is_left_out_and_the_others_go_on(fake, monkeypatch, capsys):
    monkeypatch.setattr(fake, "failing", {("textbook", 8, "train"), ("expert", 16, "infer")})
    comparison, rows = _compared(sides.CUDA_SIDES, (8, 16), CUDA)
    assert comparison.failed == {"textbook, batch 8": "out of memory", "expert, batch 16": "out of memory"}
    assert "textbook" not in rows[8, "train"]
    assert "ratio" not in rows[8, "train"]
    assert "textbook" in rows[16, "train"]
    assert "expert" in rows[16, "train"]
    assert "expert" not in rows[16, "infer"]
    assert {entry["precision"] for entry in rows[8, "train"]["best"]} == {"bfloat16"}
    assert "capsnet: textbook, batch 8 is left out: out of memory" in capsys.readouterr().err


def test_where_no_side_can_be_measured_the_command_fails(fake, monkeypatch, capsys):
    names = {side.name for side in sides.CPU_SIDES}
    monkeypatch.setattr(fake, "failing", {(name, 8, "train") for name in names})
    monkeypatch.setattr(report, "time_stages", lambda *arguments: {})
    assert cli.main(["bench", "--batch-sizes", "8", "--device", "cpu"]) == 1
    assert f"Left out: {sides.CPU_SIDES[0].name}, batch 8: out of memory" in capsys.readouterr().out


@pytest.mark.usefixtures("fake")
def test_what_has_not_begun_at_the_deadline_is_left_out(capsys):
    comparison, rows = _compared(sides.CPU_SIDES, (8,), deadline=8.0)
    assert list(rows) == [(8, "train"), (8, "peak memory")]
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert said == comparison.rows  # one round of training, then memory
    assert not comparison.workers
    assert not comparison.failed


@pytest.mark.usefixtures("fake")
def test_no_size_begins_after_the_deadline(monkeypatch):
    environment = runs.environment(CPU)
    monkeypatch.setattr(runs, "environment", lambda device: environment)
    outcome = report.benchmark("mnist", (8, 16), 2, CPU, seconds=8.0)
    assert {row["batch_size"] for row in outcome["comparison"]} == {8}
    assert outcome["failed"] == {}
    assert "stages" not in outcome
    assert report.format_tables(outcome)


# The whole command


@pytest.fixture
def two_sides(monkeypatch):
    monkeypatch.setattr(report, "sides_on", lambda device, compiled: [sides.CPU_SIDES[0], sides.CPU_SIDES[2]])
    monkeypatch.setattr(stages, "matrix_rate", partial(stages.matrix_rate, size=64))
    monkeypatch.setattr(report, "time_stages", partial(report.time_stages, repeats=1))
    monkeypatch.setitem(compare.SECONDS_A_TURN, "cpu", 0.0)


@pytest.mark.usefixtures("two_sides")
def test_the_command_on_a_cpu(capsys):
    assert cli.main(["bench", "--device", "cpu", "--batch-sizes", "1", "--rounds", "1", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in outcome["comparison"]] == ["train", "peak memory", "infer", "latency"]
    for row in outcome["comparison"]:
        assert row["textbook"] > 0
        assert row["capsnet"] > 0
        assert row["ratio"] > 0
        assert row["textbook_range"][0] <= row["textbook"] <= row["textbook_range"][1]
    assert [row["stage"] for row in outcome["stages"]] == ["Conv1", "PrimaryCaps", "routing", "decoder", "optimizer"]
    table = report.format_tables(outcome)
    assert outcome["instructions"]
    assert f"({', '.join(outcome['instructions'])})" in table.splitlines()[0]
    assert "| capsnet, times the best other in float32 | **" in table
    assert "| batch 1: median (range) | train, images/s | peak memory, MB | infer, images/s | latency, ms |" in table


def test_the_command_on_a_gpu(fake, monkeypatch, capsys):
    measured = report.time_routing(CPU, (2, 40, 5), 1)
    monkeypatch.setattr(report, "time_routing", lambda device: measured)
    environment = runs.environment(CPU)
    monkeypatch.setattr(runs, "environment", lambda device: environment)
    monkeypatch.setattr("capsnet.commands.bench.pick_device", lambda name: CUDA)
    Bench(json=True).run()
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["routing"] == measured
    assert {row["batch_size"] for row in outcome["comparison"]} == {128, 512, 2048}
    assert "stages" not in outcome
    table = report.format_tables(outcome)
    assert "| capsnet, times the best other in bfloat16 | **2.00**, expert | **2.00**, expert |" in table
    assert "| routing alone, 2 images, 40 → 5 capsules |" in table


def test_routing_that_fails_is_said_and_the_rest_is_measured(fake, monkeypatch):
    def fail(device):
        raise RuntimeError("no compiler\n…")

    monkeypatch.setattr(report, "time_routing", fail)
    environment = runs.environment(CPU)
    monkeypatch.setattr(runs, "environment", lambda device: environment)
    outcome = report.benchmark("mnist", (8,), 1, CUDA)
    assert outcome["failed"] == {"routing": "no compiler"}
    assert len(outcome["comparison"]) == 3
    assert "Left out: routing: no compiler" in report.format_tables(outcome)


def test_routing_alone_sees_the_votes_that_a_textbook_stores():
    program = """
        import json, torch
        from capsnet.benchmark.routing import time_routing
        print(json.dumps(time_routing(torch.device("cpu"), (4, 2400, 60), 1)))
    """
    found = json.loads(run_python(program))
    assert found["textbook_logits"] > 16  # a vote has 16 dimensions
    assert found["capsnet_logits"] < 5
    assert found["ratio"] == pytest.approx(found["textbook"] / found["capsnet"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rounds", "0"], "--rounds must be 1 to 10,000, not 0"),
        (["--batch-sizes", "0"], "--batch-sizes must be 1 to 1,000,000, not 0"),
        (["--seconds", "0"], "--seconds must be "),
        (["--seconds", "nan"], "--seconds must be a finite number, not nan"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said, capsys):
    assert cli.main(["bench", *flags]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_ends_all_processes_with_one_line():
    command = [sys.executable, "-m", "capsnet", "bench", "--device", "cpu", "--batch-sizes", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(children.read_text().split()) > 3, process)
    time.sleep(0.5)  # they are importing
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)  # which waits for all that have this stderr
    assert (process.returncode, err) == (130, "\ncapsnet: interrupted\n")
