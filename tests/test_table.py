"""The paper's tables: what a record must hold, and the arithmetic from records to tables."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_table import with_table
from tiny_rows import PAIRS, SIZES, TINY, TWO_SETS, add_rows, command, made, record_of

import capsnet
from capsnet.experiments import making, records, rows
from capsnet.experiments.records import read_records
from capsnet.experiments.rows import ROWS, Row
from capsnet.experiments.table import format_table, make_table

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    return add_rows(monkeypatch, tmp_path)


def test_a_record_under_another_name_is_refused(tiny, capsys):
    folder = tiny / "results" / "runs"
    folder.mkdir(parents=True)
    for name in ("tiny-2-epochs-seed-0 old.json", "tiny-2-epochs-seed-1.json"):
        (folder / name).write_text(json.dumps(made(TINY, 0, 1.0)))
        status, out, err = command(capsys, "tiny", "--table")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"{name} holds the run of tiny-2-epochs-seed-0.json" in err
        (folder / name).unlink()


def test_table_arithmetic(tiny):
    found = [
        *(made(TINY, seed, error) for seed, error in enumerate((0.2, 0.3, 0.7))),
        *(made(TINY, seed, error, epochs=1) for seed, error in enumerate((9.0, 5.0))),
        made(PAIRS, 0, 6.25),
        made(TINY, 3, 99.0, definition={**TINY.definition(), "shifts": 2}),
        made(TINY, 4, 99.0, recipe={**made(TINY, 4, 0)["recipe"], "learning_rate": 0.5}),
        made(TINY, 5, 99.0, recipe={"of another version": 1}),
    ]
    lines = make_table([TINY, PAIRS, TWO_SETS], found)
    # (0.2 + 0.3 + 0.7) / 3 = 0.4; deviations −0.2, −0.1, 0.3: √(0.14 / 2) = 0.2646. (9 + 5) / 2 = 7, √8 = 2.8284.
    assert [line.as_json() for line in lines] == [
        {"row": "tiny", "data": "some-digits", "model": "a tiny CapsNet", "runs": 3, "epochs": 2}
        | {"mean": 0.4, "std": 0.2646, "paper": 1.5},
        {"row": "tiny", "data": "some-digits", "model": "a tiny CapsNet", "runs": 2, "epochs": 1}
        | {"mean": 7.0, "std": 2.8284, "paper": 1.5},
        {"row": "tiny-pairs", "data": "some-pairs", "model": "a tiny CapsNet", "runs": 1, "epochs": 2}
        | {"mean": 6.25, "std": None, "paper": 5.0},
        {"row": "two-sets", "data": "other-digits", "model": "stopped early", "runs": 0, "epochs": 3}
        | {"mean": None, "std": None, "paper": 20.0},
    ]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in format_table(lines).splitlines()]
    assert [row[3:7] for row in shown[2:]] == [
        ["2", "3", "0.400 ± 0.265", "1.500 ± 0.250"],
        ["1 instead of 2", "2", "7.000 ± 2.828", "1.500 ± 0.250"],
        ["2", "1", "6.25", "5"],
        ["3", "0", "no run", "20"],
    ]
    assert len({len(line) for line in format_table(lines).splitlines()}) == 1  # aligned


def test_what_differs_between_the_runs_of_a_line_is_told(tiny):
    def run(seed, images, precision):
        record = made(PAIRS, seed, 5.0, final={"error": 5.0, "images": images})
        return {**record, **({"environment": {"precision": precision}} if precision else {})}

    (line,) = make_table([PAIRS], [run(0, 100_000, None), run(1, 10_000_000, "bf16-mixed")])
    assert line.cells()[-1] == "tested on 100,000 or 10,000,000 images; trained in 32-true or bf16-mixed"
    (line,) = make_table([PAIRS], [run(0, 100_000, None), run(1, 100_000, "32-true")])
    assert line.cells()[-1] == ""


def test_what_a_row_is_trained_on_is_told_where_it_is_tested_on_another():
    (line,) = make_table([TWO_SETS], [])
    assert line.cells()[1] == "other-digits, trained on some-digits"


def test_the_table_alone_runs_nothing_and_makes_nothing(tiny, capsys, monkeypatch):
    monkeypatch.setattr(making, "fit", None)
    status, out, err = command(capsys, "--table", "--json")
    assert err == "there are no records in results/runs; --out names the folder of another\n"
    table = json.loads(out)
    assert status == 0
    assert {line["row"] for line in table} == set(ROWS)
    assert set(table[0]) == {"row", "data", "model", "runs", "epochs", "mean", "std", "paper"}
    assert all((line["runs"], line["mean"]) == (0, None) for line in table)
    assert not list(tiny.iterdir())


def test_a_record_of_another_definition_is_told_and_not_overwritten(tiny, capsys, monkeypatch):
    command(capsys, "tiny", "--seeds", 1)
    changed = Row(*("tiny", "some-digits", "changed", "capsnet", SIZES, capsnet.Recipe(epochs=2), 1.5))
    monkeypatch.setitem(rows.ROWS, "tiny", changed)
    status, out, err = command(capsys, "tiny", "--table")
    assert (status, "no run" in out) == (0, True)
    assert err == "not counted, as the row was defined otherwise then: tiny with seed 0, 2 epochs\n"
    status, _, err = command(capsys, "tiny", "--seeds", 1)
    assert status == 2
    assert "was made when the row tiny was defined otherwise" in err
    (tiny / "results" / "runs" / "tiny-2-epochs-seed-0.json").unlink()
    status, _, err = command(capsys, "tiny", "--seeds", 1)
    assert status == 2
    assert "holds a run of another definition of tiny; move it away" in err


def test_a_run_folder_of_an_older_version_with_fewer_settings_is_gone_on_with(tiny, capsys, monkeypatch):
    command(capsys, "tiny", "--seeds", 1)
    before = record_of(tiny, "tiny-2-epochs-seed-0")
    (tiny / "results" / "runs" / "tiny-2-epochs-seed-0.json").unlink()
    path = tiny / "runs" / "reproduce" / "tiny-2-epochs-seed-0" / "config.json"
    config = json.loads(path.read_text())
    del config["command"]["recipe"]["elastic"]
    path.write_text(json.dumps(config))
    monkeypatch.setattr(making, "fit", None)
    assert command(capsys, "tiny", "--seeds", 1)[0] == 0
    assert record_of(tiny, "tiny-2-epochs-seed-0")["final"] == before["final"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "",
        lambda record: json.dumps(record)[:100],
        lambda record: "[1, 2]",
        lambda record: json.dumps({**record, "final": {}}),
        lambda record: json.dumps({**record, "final": {"error": float("nan")}}),
        lambda record: json.dumps({**record, "final": {"error": -1}}),
        lambda record: json.dumps({**record, "final": {"error": True}}),
        lambda record: json.dumps({**record, "final": {"error": 1.0, "clean_error": "low"}}),
        lambda record: json.dumps({**record, "final": {"error": 1.0, "interval": [0.5]}}),
        lambda record: json.dumps({**record, "recipe": {**record["recipe"], "stop_at_error": 1.0}}),
        lambda record: json.dumps({**record, "recipe": {**record["recipe"], "stop_at_error": 1.0}, "curve": [{}]}),
        lambda record: json.dumps({**record, "epochs": "2"}),
        lambda record: json.dumps({**record, "recipe": None}),
        lambda record: json.dumps({**record, "environment": None}),
        lambda record: json.dumps({k: v for k, v in record.items() if k != "seed"}),
    ],
)
def test_a_damaged_record_is_told_in_one_line_before_anything_runs(tiny, capsys, monkeypatch, damage):
    monkeypatch.setattr(making, "fit", None)
    path = tiny / "results" / "runs" / "tiny-2-epochs-seed-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(damage(made(TINY, 0, 1.0)))
    for arguments in (["--table"], ["tiny"]):
        status, out, err = command(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("capsnet: results/runs/tiny-2-epochs-seed-0.json is damaged")


def test_a_runs_commit_says_whether_the_tree_was_changed(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    assert records.current_commit(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = records.current_commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.json").write_text("{}")
    assert records.current_commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert records.current_commit(tmp_path) == f"{clean} (dirty)"
    git("checkout", "code.py")
    (tmp_path / "new.py").write_text("3")
    assert records.current_commit(tmp_path) == f"{clean} (dirty)"


def test_a_copy_of_a_checkout_knows_its_commit(tmp_path):
    checkout, copy = tmp_path / "checkout", tmp_path / "copy"
    (checkout / "src").mkdir(parents=True)
    (checkout / "src" / "code.py").write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init"], ["add", "."], ["commit", "-m", "first"]):
        subprocess.run(["git", "-C", checkout, *who, *words], check=True, capture_output=True)
    commit = records.current_commit(checkout)
    records.note_commit(checkout)
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
    assert records.current_commit(copy) == commit
    (copy / "src" / "code.py").write_text("2")
    assert records.current_commit(copy) == f"{commit} (dirty)"
    (copy / "src" / "code.py").write_text("1")
    (copy / "src" / "new.py").touch()
    assert records.current_commit(copy) == f"{commit} (dirty)"
    # What was noted is believed while the code is that, whatever else Git sees, such as .gpu itself.
    assert records.current_commit(checkout) == commit
    (checkout / "src" / "code.py").write_text("2")
    records.note_commit(checkout)
    assert json.loads((checkout / records.COPIED).read_text())["commit"] == f"{commit} (dirty)"


def test_the_readme_has_the_table_of_the_records_and_keeps_it_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "readme_table.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = (ROOT / "README.md").read_text()
    assert all(f"| {name} " in text for name in ROWS)
    changed = with_table(text, "another table")
    assert changed.count("another table") == 1
    assert "| mnist-cnn " not in changed
    assert (
        with_table(with_table(text, ""), format_table(make_table(ROWS.values(), read_records(ROOT / "results"))))
        == text
    )
    with pytest.raises(SystemExit, match="lost its markers"):
        with_table("no markers", "table")
