"""The test of the claim: what is trained on what, what is measured, what is made of it; on tiny networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import capsnet
from capsnet import cli, runs
from capsnet.commands.spatial import RUNS
from capsnet.data.faces import make_faces
from capsnet.experiments.making import Settings
from capsnet.experiments.spatial import attacks, detection, plan, readout, reproduce, summary, tables
from capsnet.experiments.spatial import figures as spatial_figures
from capsnet.experiments.spatial import records as spatial_records
from capsnet.experiments.spatial.cost import part_rows, read_cost, step_rows
from capsnet.experiments.spatial.figures import figures
from capsnet.experiments.spatial.page import page
from capsnet.experiments.spatial.plan import MAIN, NON_FACES, VARIANTS, Run, runs_of, tasks_of, training_set
from capsnet.experiments.spatial.records import is_current, read_records
from capsnet.experiments.spatial.summary import Comparison, Records
from capsnet.models import build_model

ROOT = Path(__file__).parents[1]
TINY = {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (8,)}
SMALL = {"channels": (4, 4), "dense": 20}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two models and runs that take a second, in a folder of their own."""
    faces, digits = {"in_shape": (1, 32, 32), "num_classes": 2}, {"in_shape": (1, 28, 28), "num_classes": 10}
    few = {
        "capsnet-r3-rec": replace(
            VARIANTS["capsnet-r3-rec"], faces=("detector", faces | TINY), digits=("capsnet", digits | TINY)
        ),
        "cnn": replace(VARIANTS["cnn"], faces=("cnn-detector", faces | SMALL), digits=("small-cnn", digits | SMALL)),
    }
    for name, variant in few.items():
        monkeypatch.setitem(plan.VARIANTS, name, variant)
    others = [task for task in plan.TASKS if not task.startswith("images-")]
    tasks = (others[0], "images-8", "images-16", *others[1:])
    for module in (plan, summary, tables, spatial_figures):
        monkeypatch.setattr(module, "IMAGES", 32)
        monkeypatch.setattr(module, "FEWER", (8, 16))
    for module in (plan, spatial_records):
        monkeypatch.setattr(module, "TASKS", tasks)
    monkeypatch.setattr("capsnet.data.faces.SPLITS", {"train": 32, "test": 16})
    mnist = capsnet.open_dataset("mnist", "test")
    for module in (plan, readout, attacks):
        monkeypatch.setattr(module, "load_mnist", lambda split: mnist.first(300))
    for module, name, value in (
        *((detection, "COUNT", 20), (readout, "FITTED", 300), (readout, "TESTED", 100), (readout, "SWEPT", 8)),
        *(
            (attacks, "COUNT", 10),
            (attacks, "ATTACKS", (attacks.Attack("PGD", 2, False), attacks.Attack("hid", 2, True))),
        ),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(readout, "TURNS", (-30, 0, 30))
    detection.faces_to_test.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    detection.faces_to_test.cache_clear()


def command(capsys, *words):
    status = cli.main(["reproduce", "spatial", *map(str, words), "--device", "cpu"])
    return status, *capsys.readouterr()


def test_models_are_of_one_size():
    for place in ("faces", "digits"):
        counts = {}
        for name in MAIN:
            with torch.device("meta"):
                counts[name] = sum(p.numel() for p in build_model(*getattr(VARIANTS[name], place)).parameters())
        assert counts["cnn"] == pytest.approx(counts["capsnet-r3-rec"], rel=0.01)


def test_parts_need_their_tasks():
    assert tasks_of(("a",)) == [f"without-{kind}" for kind in NON_FACES]
    assert tasks_of(("b",)) == ["all", "painted"]
    assert tasks_of(("d",)) == ["all"]
    assert tasks_of(("c",))[0] == "all"
    assert tasks_of(("e", "f")) == ["digits"]
    assert set(tasks_of(())) == set(plan.TASKS)
    seeds = [run.seed for run in runs_of(seeds=2)]
    assert seeds == sorted(seeds)
    assert len({run.name for run in runs_of()}) == len(runs_of())
    for wrong in ({"parts": ("g",)}, {"variants": ("mlp",)}):
        with pytest.raises(capsnet.InputError, match="there are"):
            runs_of(**wrong)


def test_a_kind_that_is_left_out_is_not_in_training(monkeypatch):
    monkeypatch.setattr(plan, "IMAGES", 48)
    everything = {kind: make_faces(48, kinds=("face", kind)) for kind in NON_FACES}
    for left in NON_FACES:
        data = training_set(f"without-{left}")
        assert data.labels.float().mean() == 0.5
        assert torch.equal(data.images[::2], make_faces(48, kinds=("face",)).images[::2])
        for number in range(1, 48, 2):
            kinds = [kind for kind in NON_FACES if torch.equal(data.images[number], everything[kind].images[number])]
            assert kinds
            assert left not in kinds


def test_area_under_curve_and_errors_of_poses():
    faces, others = torch.rand(50), torch.rand(40)
    faces[:5] = others[:5]
    pairs = faces[:, None] - others
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean()
    assert detection.area_under_curve(faces, others) == pytest.approx(float(expected))
    true = torch.tensor([[0.0, 0.0, 179.0, 0.5, 0.0], [0.1, 0.0, 10.0, 1.0, 0.0]])
    read = torch.tensor([[0.03, 0.04, -179.0, 0.55, 0.0], [0.1, 0.0, 14.0, 0.9, 0.0]])
    errors = detection.pose_errors(read, true)
    assert errors == {name: pytest.approx(x, rel=1e-4) for name, x in zip(errors, (3.0, 10.0, 2.5), strict=True)}


def test_false_accepts_are_counted_where_one_face_in_twenty_is_missed(tiny, monkeypatch):
    likelihoods = {
        "face": torch.arange(20) / 20,
        "scrambled": torch.full((20,), 0.04),
        "misoriented": torch.full((20,), 0.9),
        "missing": torch.arange(20) / 40,
    }
    model = build_model(*plan.VARIANTS["cnn"].faces)
    by_image = {int(make_faces(20, "test", kinds=(kind,)).images.sum()): kind for kind in likelihoods}

    def answer(model, images, device):
        return capsnet.models.Detection(likelihoods[by_image[int(images.sum())]], torch.zeros(len(images), 5))

    monkeypatch.setattr(detection, "detect", answer)
    found = detection.measure_detection(model, outside=False)
    assert found["false_accepts"] == {"scrambled": 0.0, "misoriented": 100.0, "missing": 90.0}


def test_stroke_width_is_that_of_a_stroke():
    images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    for number, width in enumerate((2, 3, 5)):
        images[number, 0, 4:24, 10 : 10 + width] = 255
    widths = readout.stroke_width(images)
    assert torch.allclose(widths, torch.tensor([2.0, 3.0, 5.0]) * 20 / (20 + torch.tensor([2.0, 3.0, 5.0])), rtol=0.08)


def test_a_read_out_finds_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(900, 6, generator=generator)
    winners = torch.arange(900) % 10
    factors = torch.stack([x @ torch.arange(6.0) * (1 + winners), torch.randn(900, generator=generator)], 1)
    halves = [
        readout.Answers(*(each[part] for each in (x, winners, factors))) for part in (slice(600), slice(600, 900))
    ]
    there, noise = readout._explained(*halves)
    assert there > 0.99
    assert noise < 0.1
    fewer = readout._principal(*halves, 6)
    assert readout._explained(*fewer)[0] == pytest.approx(there, abs=0.01)


def test_transformed_digits_are_what_their_factors_say():
    digits = capsnet.open_dataset("mnist", "test").images[:200]
    moved, factors = readout.transformed(digits, 0)
    assert moved.shape == digits.shape
    ink = moved.float().sum((1, 2, 3)) / digits.float().sum((1, 2, 3))
    assert torch.corrcoef(torch.stack([ink, factors[:, 1] ** 2]))[0, 1] > 0.95  # area grows as the square of the scale
    columns = torch.arange(28.0)
    centre, before = ((x.float().sum((1, 2)) * columns).sum(1) / x.float().sum((1, 2, 3)) for x in (moved, digits))
    assert torch.corrcoef(torch.stack([centre - before, factors[:, 3]]))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["capsnet-r3-rec", "cnn"])
def test_attacks_stay_within_reach_and_raise_the_error(tiny, name):
    torch.manual_seed(0)
    model = build_model(*plan.VARIANTS[name].digits)
    digits = capsnet.open_dataset("mnist", "test").first(100)
    recipe = capsnet.Recipe(epochs=30, batch_size=20, learning_rate=0.005, final_learning_rate=0.001)
    capsnet.fit(model, digits, recipe, progress=False)
    images, labels = capsnet.data.to_float(digits.images[:40]), digits.labels[:40]
    clean = attacks._error(model, images, labels)
    assert clean < 30
    errors = []
    for attack in (attacks.Attack("FGSM", 1, False), attacks.Attack("PGD", 8, False)):
        changed = attacks.perturbed(model, images, labels, 0.2, attack, torch.Generator().manual_seed(0))
        assert (changed - images).abs().max() <= 0.2 + 1e-6
        assert 0 <= changed.min() <= changed.max() <= 1
        errors.append(attacks._error(model, changed, labels))
    assert errors[0] > clean
    assert errors[1] >= errors[0] - 5
    if name != "cnn":
        hidden = attacks.Attack("hides", 8, True)
        plain, hiding = (
            attacks.perturbed(model, images, labels, 0.2, each, torch.Generator().manual_seed(0))
            for each in (attack, hidden)
        )
        assert attacks._distances(model, hiding).mean() < attacks._distances(model, plain).mean()


def test_runs_are_made_once_recorded_and_told(tiny, capsys):
    words = ("--models", "capsnet-r3-rec", "cnn", "--seeds", 1, "--epochs", 1)
    status, out, err = command(capsys, *words)
    assert status == 0, err
    records = read_records(Path("results"))
    assert len(records) == 2 * len(plan.TASKS)
    assert all(map(is_current, records))
    assert "of 16 runs are there" in err
    assert command(capsys, *words)[2] == ""
    for record in records:
        assert record["commit"]
        assert record["environment"]["torch"] == torch.__version__
        assert record["curve"][0]["epoch"] == 1
        if record["task"] != "digits":
            model = capsnet.load(f"runs/spatial/{record['run']}")
            assert record["measures"] == json.loads(
                json.dumps(detection.measure_detection(model, record["task"] == "all", record["task"] == "painted"))
            )
    for part in plan.PARTS:
        assert tables.TITLES[part] in out
    assert "error_" not in out
    told = json.loads(command(capsys, *words, "--table", "--json")[1])
    (error,) = [r["measures"]["error"] for r in records if (r["variant"], r["task"]) == ("cnn", "all")]
    assert told["cnn"]["all"]["error"] == {"mean": pytest.approx(error, abs=1e-4), "std": None, "seeds": 1}
    found = Records(records, epochs=1)
    drawn = figures(found)
    assert set(drawn) == {"non-faces", "outside", "images", "turned-digits", "attacks"}
    for draw in drawn.values():
        draw(True).canvas.draw()
    assert "too few runs to tell" in page(found, list(drawn), None)


def test_an_interrupted_run_goes_on_to_the_same_result(tiny, capsys, monkeypatch):
    run = Run(plan.VARIANTS["cnn"], "without-missing", 0, epochs=2)
    settings = Settings(results=tiny / "whole", folder=tiny / "whole-runs")
    reproduce.reproduce(run, settings)
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "_measure", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            reproduce.reproduce(run, Settings(folder=RUNS))
    assert not list(Path("results/spatial").glob("*"))
    assert reproduce.reproduce(run, Settings(folder=RUNS))
    one, other = (
        json.loads((folder / "spatial" / f"{run.name}.json").read_text())
        for folder in (tiny / "whole", Path("results"))
    )
    assert one["measures"] == other["measures"]


def test_a_run_of_another_definition_is_refused_and_not_counted(tiny, capsys, monkeypatch):
    words = ("--models", "cnn", "--parts", "d", "--seeds", 1, "--epochs", 1)
    command(capsys, *words)
    wider = replace(plan.VARIANTS["cnn"], faces=("cnn-detector", {**plan.VARIANTS["cnn"].faces[1], "dense": 30}))
    monkeypatch.setitem(plan.VARIANTS, "cnn", wider)
    status, _, err = command(capsys, *words)
    assert status == 2
    assert "defined otherwise" in err
    status, out, err = command(capsys, *words, "--table")
    assert (status, "not counted" in err, "No runs yet" in out) == (0, True, True)
    (path,) = Path("results/spatial").glob("*.json")
    path.write_text("{}")
    assert "is damaged" in command(capsys, *words)[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("spatial", "--parts", "x"), "unknown part 'x'"),
        (("spatial", "--models", "x"), "unknown model 'x'"),
        (("spatial", "mnist-cnn"), "alone"),
        (("mnist-cnn", "--parts", "a"), "--parts belongs to: capsnet reproduce spatial"),
        (("spatial", "--full"), "--full belongs to: the paper's tables"),
        (("spatial", "--smallnorb", "files"), "--smallnorb belongs to: the paper's tables"),
        (("spatial", "--affnist", "files"), "--affnist belongs to: the paper's tables"),
        (("spatial", "--seeds", "0"), "--seeds must be 1 to 10,000"),
    ],
)
def test_wrong_words_are_told(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_difference_is_one_only_beyond_chance():
    far, near = [10.0, 11.0, 12.0], [11.0, 12.0, 13.5]
    assert Comparison("x", "", far, [30.0, 31.0]).winner == "CapsNet"
    assert Comparison("x", "", far, [30.0, 31.0], better=1).winner == "CNN"
    assert Comparison("x", "", far, near).winner is None
    assert Comparison("x", "", far, [30.0]).winner is None


def test_images_needed_are_read_between_the_sizes():
    def record(task, error):
        run = Run(VARIANTS["cnn"], task, 0)
        return {
            **{"variant": "cnn", "task": task, "seed": 0, "epochs": None, "measures": {"error": error}},
            **{"definition": run.definition(), "recipe": run.recipe.__dict__},
        }

    tasks = [f"images-{count}" for count in plan.FEWER] + ["all"]
    errors = [40.0, 30.0, 20.0, 15.0, 5.0]
    curve = Records([record(task, error) for task, error in zip(tasks, errors, strict=True)])
    assert summary.images_needed(curve, "cnn") == {0: pytest.approx((plan.FEWER[-1] * plan.IMAGES) ** 0.5)}
    poor = Records([record(task, 30.0) for task in tasks])
    assert summary.images_needed(poor, "cnn") == {}
    assert summary.images_needed(Records([record("all", 5.0)]), "cnn") == {}


def test_what_it_costs_is_computed_from_measured_steps(tmp_path):
    assert read_cost(tmp_path) is None
    assert {row[2] for row in part_rows(None)} == {"–"}
    steps = [
        {"variant": name, "task": task, "milliseconds": [36.0, 30.0, 50.0]}
        for name in VARIANTS
        for task in ("images-625", "digits")
    ]
    (tmp_path / "spatial").mkdir()
    runs.write_json(tmp_path / "spatial" / "cost.json", {"environment": {"device": "x"}, "steps": steps})
    cost = read_cost(tmp_path)
    assert step_rows(Records([]), cost)[0][1:] == ["–", "36 (30–50)", "36 (30–50)", "0"]
    # 5 models × 3 seeds × 938 steps of digits
    hours = {row[0][:3]: row[2] for row in part_rows(cost)}
    assert hours["(e)"] == hours["(f)"] == f"{5 * 3 * 938 * 0.036 / 3600:.1f}"
    (tmp_path / "spatial" / "cost.json").write_text('{"steps": [{}], "environment": {}}')
    with pytest.raises(capsnet.InputError, match="make it again"):
        read_cost(tmp_path)


def test_the_page_is_up_to_date():
    """docs/claims.md is what the records say."""
    records = Records(read_records(ROOT / "results"))
    assert (ROOT / "docs" / "claims.md").read_text() == page(
        records, list(figures(records)), read_cost(ROOT / "results")
    )


def test_folders_of_runs_are_resumable_by_name(tiny):
    run = Run(plan.VARIANTS["cnn"], "all", 0, epochs=1)
    reproduce.reproduce(run, Settings(folder=RUNS))
    assert runs.read_config(Path("runs/spatial") / run.name)["command"]["reproduce"] == f"spatial {run.name}"
