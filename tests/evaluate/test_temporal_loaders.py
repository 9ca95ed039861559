"""Loaders of published files: small files of the published layout, column by column; missing columns are named."""

import csv
import json

import pytest

from moesaic.errors import InputError
from moesaic.evaluate.temporal import loaders, step
from moesaic.evaluate.temporal.make import contamination
from moesaic.evaluate.temporal.tasks import GENERATED, TASKS
from moesaic.evaluate.temporal.verify import verify
from moesaic.schema import Temporal

THREE = ["Option A", "Option B", "Option C"]
COLUMNS = {
    "ambiguity_resolution": ["Question", *THREE, "Answer", "Category"],
    "arithmetic": ["Question", *THREE, "Option D", "Answer", "Category"],
    "causality": ["Premise", "Question", "Option A", "Option B", "Answer", "Category"],
    "duration": ["Question", *THREE, "Answer", "Category"],
    "frequency": ["Question", *THREE, "Answer", "Category"],
    "nli": ["Premise", "Question", "Hypothesis", *THREE, "Answer", "Source"],
    "ordering": ["Question", *THREE, "Answer", "Category"],
    "relation": ["Question", *THREE, "Answer", "Source"],
    "storytelling": ["Story", "Question", "Option A", "Option B", "Answer", "Source"],
    "typical_time": ["Question", *THREE, "Answer", "Category"],
}


def write(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def row(file, category, i, kind=""):
    found = {name: f"{kind}{category} {name} {i}" for name in COLUMNS[file]}
    found |= {name: f"option {name[-1]} of {i}" for name in COLUMNS[file] if name.startswith("Option")}
    found["Answer"] = "AB"[i % 2]
    if file == "nli":
        # As published: the question is the same in all rows.
        found |= {
            "Question": "What is the relationship?",
            "Option A": "entailment",
            "Option B": "neutral",
            "Option C": "contradiction",
        }
    found[COLUMNS[file][-1]] = category
    return found


@pytest.fixture
def tram(tmp_path):
    """All ten files with 12 rows a category, and their shots."""
    for file, columns in COLUMNS.items():
        names = [task.category or "SNLI" for task in TASKS.values() if task.file == file]
        folder = tmp_path / "tram" / file
        write(folder / f"{file}_mcq.csv", columns, [row(file, name, i) for name in names for i in range(12)])
        write(
            folder / f"{file}_shots_mcq.csv",
            columns,
            [row(file, name, i, "shot ") for name in names for i in range(5)],
        )
    saq = [
        {"Question": f"When is it {i}?", "Answer": f"{i + 1}:00 PM", "Category": "Hour Adjustment (12h)"}
        for i in range(9)
    ]
    write(tmp_path / "tram/arithmetic/arithmetic_saq.csv", ["Question", "Answer", "Category"], saq)
    write(tmp_path / "tram/arithmetic/arithmetic_shots_saq.csv", ["Question", "Answer", "Category"], [])
    return tmp_path / "tram"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_read_from_its_file(tram, task):
    items = loaders.tram(tram, task)
    assert len(items) == 12
    assert {item.kind for item in items} == {TASKS[task].kind}
    for i, item in enumerate(items):
        assert item.answer == "AB"[i % 2]
        assert len(item.choices) == sum(name.startswith("Option") for name in COLUMNS[TASKS[task].file])
        assert verify(item, item.choices["AB".index(item.answer)])
        for column in ("Premise", "Hypothesis", "Story"):
            assert (f"{column}: " in item.question) == (column in COLUMNS[TASKS[task].file])
    assert len({item.question for item in items}) == 12
    assert {item.split for item in loaders.tram(tram, task, shots=True)} == {"validation"}
    assert len(loaders.tram(tram, task, shots=True)) == 5


def test_short_answers_are_read_and_verified(tram):
    items = loaders.tram(tram, "hour_adjustment_12h", "short")
    assert [item.answer for item in items] == [f"{i + 1}:00 PM" for i in range(9)]
    assert verify(items[0], "13:00")
    assert loaders.tram_forms(tram, "hour_adjustment_12h") == ["choice", "short"]
    assert loaders.tram_forms(tram, "relation") == ["choice"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Shift - ST", "shift_short"), ("ambiguity_resolution-shift-MT", "shift_medium"), ("Hour Adjustment (24-hour)", "hour_adjustment_24h"),
        ("arithmetic-application", "arithmetic_application"), ("Multi-step comparison", "duration_multistep_comparison"),
        ("direct comparison", "duration_direct_comparison"), ("Analogy", "duration_analogy"), ("Common-sense", "duration_commonsense"),
        ("Duration: Computation", "duration_computation"),
    ],
)  # fmt: skip
def test_spellings_of_the_category(tmp_path, name, task):
    file = TASKS[task].file
    write(tmp_path / f"{file}_mcq.csv", COLUMNS[file], [row(file, name, 0)])
    assert len(loaders.tram(tmp_path, task)) == 1


@pytest.mark.parametrize(
    ("file", "task", "column"),
    [
        ("arithmetic", "year_shift", "Question"), ("arithmetic", "year_shift", "Option A"), ("arithmetic", "year_shift", "Answer"),
        ("arithmetic", "year_shift", "Category"), ("nli", "temporal_nli", "Premise"), ("nli", "temporal_nli", "Hypothesis"),
        ("causality", "causality_cause", "Premise"), ("storytelling", "storytelling", "Story"),
    ],
)  # fmt: skip
def test_a_missing_column_is_named(tmp_path, file, task, column):
    columns = [name for name in COLUMNS[file] if name != column]
    rows = [{k: v for k, v in row(file, TASKS[task].category or "x", 0).items() if k != column}]
    write(tmp_path / f"{file}_mcq.csv", columns, rows)
    with pytest.raises(InputError, match=rf"{file}_mcq.csv, row 1: no column '{column}'"):
        loaders.tram(tmp_path, task)


def test_what_else_can_be_wrong_with_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"no arithmetic_mcq.csv in"):
        loaders.tram(tmp_path, "year_shift")
    with pytest.raises(InputError, match="is not a folder"):
        loaders.tram(tmp_path / "nowhere", "year_shift")
    path = tmp_path / "arithmetic_mcq.csv"
    write(path, COLUMNS["arithmetic"], [row("arithmetic", "Year Shift", 0) | {"Answer": "E"}])
    with pytest.raises(InputError, match="the answer 'E' is none of the 4 options' letters"):
        loaders.tram(tmp_path, "year_shift")
    write(path, COLUMNS["arithmetic"], [row("arithmetic", "Moon Phases", 0)])
    with pytest.raises(InputError, match="unknown Category 'Moon Phases'; known in arithmetic: Hour"):
        loaders.tram(tmp_path, "year_shift")


def test_all_takes_what_a_folder_has_and_a_named_task_must_be_there(tram):
    """TRAM's causality.zip alone, without its shots: the other tasks that only TRAM has are missing, not an error."""
    for file in list(tram.rglob("*.csv")):
        if file.name != "causality_mcq.csv":
            file.unlink()
    counts = {"train": 2, "validation": 2, "test": 2}
    items, found = step.collect(Temporal(tram=str(tram), **counts), 0)
    assert {name for name, source in found.items() if source == "tram"} == {
        "causality_cause",
        "causality_effect",
    }
    assert {name for name, source in found.items() if source == "generated"} == set(GENERATED)
    assert {item.split for item in items if item.task == "causality_cause"} == {"train", "validation", "test"}
    # Published items only: nothing that is made takes the place of what is not there.
    _, found = step.collect(Temporal(tram=str(tram), published="all", **counts), 0)
    assert found == dict.fromkeys(("causality_cause", "causality_effect"), "tram")
    with pytest.raises(InputError, match=r"no storytelling_mcq\.csv in"):
        step.collect(Temporal(tasks=["storytelling"], tram=str(tram), **counts), 0)
    with pytest.raises(InputError, match=r"no causality_shots_mcq\.csv in"):
        step.collect(Temporal(tasks=["causality_cause"], tram=str(tram), **counts), 0)
    with pytest.raises(InputError, match=r"none of TRAM's files, such as causality_mcq\.csv, in .*nowhere"):
        step.collect(Temporal(tram=str(tram / "nowhere"), **counts), 0)


TIMEBENCH = {
    "McTaco/mctaco_f2_timebench.jsonl": {
        "qid": 7, "context": "He ran home.", "question": "How long did he run?", "options": ["30 minutes", "9 years"], "labels": ["yes", "no"],
        "type": "Event Duration",
    },
    "TimeDial/timedial_f2_timebench.jsonl": {
        "qid": 9, "context": "Person1: See you at <MASK> .", "options": ["nine", "40 BC"], "labels": ["yes", "no"],
    },
    "TimeQA/timeqa_easy_timebench.jsonl": {
        "question": "Whom did he play for from 2009 to 2010?", "context": "He joined Hull City in 2009.", "answer": ["Hull City", "Hull"],
        "question_type": "between_explicit", "idx": "/wiki/X#1",
    },
}  # fmt: skip


def write_lines(folder, files):
    for name, record in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(record) + "\n")
    return folder


def test_timebench(tmp_path):
    items = {item.id: item for item in loaders.timebench(write_lines(tmp_path, TIMEBENCH))}
    assert sorted({item.task for item in items.values()}) == [
        "timebench_mctaco",
        "timebench_timedial",
        "timebench_timeqa",
    ]
    yes, no = (items[f"timebench_mctaco-mctaco_f2_timebench-00001-{i}"] for i in (0, 1))
    assert yes.question == "He ran home.\nHow long did he run?\nIs this a plausible answer: 30 minutes?"
    assert (yes.answer, no.answer, yes.choices) == ("A", "B", ("yes", "no"))
    assert verify(no, "no")
    assert not verify(no, "yes")
    assert (
        yes.question_id
        == no.question_id
        != items["timebench_timedial-timedial_f2_timebench-00001-0"].question_id
    )
    answer = items["timebench_timeqa-timeqa_easy_timebench-00001"]
    assert verify(answer, "Hull")
    assert verify(answer, "Hull City")
    assert not verify(answer, "Grimsby")


@pytest.mark.parametrize("field", ["context", "labels", "options", "question"])
def test_timebench_missing_field(tmp_path, field):
    name = "McTaco/mctaco_f2_timebench.jsonl"
    write_lines(tmp_path, {name: {key: value for key, value in TIMEBENCH[name].items() if key != field}})
    with pytest.raises(InputError, match=rf"mctaco_f2_timebench.jsonl, line 1: no field '{field}'"):
        loaders.timebench(tmp_path)
    with pytest.raises(InputError, match="TimeBench-subset-7553"):
        loaders.timebench(tmp_path / "empty")


MCTACO = [
    ("He ran home.", "How long did he run?", "30 minutes", "yes", "Event Duration"),
    ("He ran home.", "How long did he run?", "9 years", "no", "Event Duration"),
    ("He ran home.", "When did he run?", "at noon", "yes", "Typical Time"),
]


def test_mctaco(tmp_path):
    (tmp_path / "test_9442.tsv").write_text("".join("\t".join(r) + "\n" for r in MCTACO))
    (tmp_path / "dev_3783.tsv").write_text("\t".join(MCTACO[2]) + "\n")
    items = loaders.mctaco(tmp_path)
    assert [(item.task, item.answer, item.split) for item in items] == [
        ("mctaco_typical_time", "A", "validation"), ("mctaco_event_duration", "A", "test"), ("mctaco_event_duration", "B", "test"),
        ("mctaco_typical_time", "A", "test"),
    ]  # fmt: skip
    assert items[1].question_id == items[2].question_id != items[3].question_id == items[0].question_id
    (tmp_path / "test_9442.tsv").write_text("a\tb\tc\tyes\n")
    with pytest.raises(
        InputError, match=r"test_9442.tsv, line 1: 4 columns instead of .* \(missing: category\)"
    ):
        loaders.mctaco(tmp_path)


def test_collected_sets_share_nothing_and_say_where_they_are_from(tram, tmp_path):
    write_lines(tmp_path / "timebench", TIMEBENCH)
    settings = Temporal(train=3, validation=3, test=4, tram=str(tram), timebench=str(tmp_path / "timebench"))
    items, sources = step.collect(settings, 0)
    step.check(items)
    assert len([name for name in TASKS if name in sources]) == 38
    assert {name for name, source in sources.items() if source == "tram"} == {
        name for name, task in TASKS.items() if not task.generated
    }
    sides = {
        split: [item for item in items if item.split == split] for split in ("train", "validation", "test")
    }
    assert contamination(sides["train"], sides["test"]) == []
    assert {item.task for item in sides["train"]} <= set(TASKS)  # other papers' sets are for evaluation only
    everything, sources = step.collect(
        Temporal(train=3, validation=3, test=4, tram=str(tram), published="all"), 0
    )
    assert set(sources.values()) == {"tram"}
    assert all(item.id.startswith("tram-") for item in everything)


def test_a_copied_question_stops_the_step(tram):
    items, _ = step.collect(
        Temporal(
            tasks=["causality_cause", "year_shift"],
            forms=["choice"],
            train=3,
            validation=3,
            test=4,
            tram=str(tram),
        ),
        0,
    )
    test = next(item for item in items if item.split == "test" and item.task == "causality_cause")
    copy = type(test)("copied", test.task, test.kind, test.question.upper(), "A", test.choices, "train")
    with pytest.raises(
        InputError, match=f"1 questions are both in train and in test, such as copied and {test.id}"
    ):
        step.check([*items, copy])
