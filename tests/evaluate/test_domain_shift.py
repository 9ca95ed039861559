"""Domain shift: BOSS's files from a folder, missing with what adds them, and a pair of domains that a package ships."""

import json

import numpy as np
import pytest

from moesaic.errors import InputError
from moesaic.evaluate.harness import TaskScores
from moesaic.evaluate.reliability import boss, lm_tasks, sets, suite
from moesaic.flow import files, manifest, step
from moesaic.schema import Reliability


@pytest.fixture
def folder(tmp_path):
    """The layout that the authors' code writes (pandas, tab-separated, quoted where needed)."""
    for name, verb in (("amazon", "arrived"), ("semeval", "tweeted"), ("sst5", "played")):
        where = tmp_path / f"sets/boss/SentimentAnalysis/{name}"
        where.mkdir(parents=True)
        rows = [f"It {verb} number {i}, fine.\\t{i % 3}".replace("\\t", "\t") for i in range(12)]
        rows += ['"A ""quoted"" one"\t1.0', "\t1", "no label\t"]
        (where / "test.tsv").write_text("Text\tLabel\n" + "\n".join(rows) + "\n")
        (where / "train.tsv").write_text("Text\tLabel\nnever read\t0\n")
    for name in ("mnli", "wanli"):
        where = tmp_path / f"sets/boss/NaturalLanguageInference/{name}"
        where.mkdir(parents=True)
        rows = [f"Fact {i}.\tIt holds.\t{i % 3}" for i in range(6)]
        (where / "test.tsv").write_text("Premise\tHypothesis\tLabel\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_files_of_boss(folder):
    found = sets.load("boss-sentiment", str(folder / "sets"), "packages").rows
    assert len(found) == 3 * 13
    assert found[0] == {
        "sentence": "It arrived number 0, fine.",
        "label": 0,
        "domain": "amazon",
        "ask": "sentiment3",
    }
    assert {row["sentence"] for row in found} >= {'A "quoted" one'}
    made = {
        name: (facts, rows) for name, facts, rows in lm_tasks.tasks("boss-sentiment", found, {"items": 9})
    }
    assert list(made) == [
        "rel_boss_sentiment_amazon",
        "rel_boss_sentiment_semeval",
        "rel_boss_sentiment_sst5",
    ]
    facts, rows = made["rel_boss_sentiment_sst5"]
    assert facts["against"] == "rel_boss_sentiment_amazon"
    assert "against" not in made["rel_boss_sentiment_amazon"][0]
    assert [row["gold"] for row in rows] == [0, 1, 2] * 3
    assert facts["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert rows[0]["choices"] == ["negative", "positive", "neutral"]
    assert "positive, negative or neutral?" in rows[0]["prompt"]
    nli = sets.load("boss-nli", str(folder / "sets"), "packages").rows
    made = lm_tasks.tasks("boss-nli", nli, {"items": 6})
    assert [name for name, *_ in made] == ["rel_boss_nli_mnli", "rel_boss_nli_wanli"]
    assert made[0][2][0]["choices"] == ["True", "Neither", "False"]


def test_toxicity_asks_yes_or_no():
    row = lm_tasks.ASKED["toxicity"]({"sentence": "So kind.", "label": 0})
    assert (row["choices"][row["gold"]], row["prompt"].splitlines()[0]) == ("No", "So kind.")


def test_missing_with_the_command(folder, monkeypatch):
    monkeypatch.chdir(folder)
    values = Reliability(sets=["boss-sentiment", "boss-toxicity"], folder="sets", items=6).model_dump(
        mode="json"
    )
    (folder / "results/prepare").mkdir(parents=True)
    out = (folder / "results/prepare/reliability").relative_to(folder)
    step.execute(step.STEPS["reliability"], {"reliability": values}, {}, out)
    missing = manifest.read(out).metrics["missing"]
    assert list(missing) == ["boss-toxicity"]
    assert "cp -r datasets/process/ToxicDetection FOLDER/boss/" in missing["boss-toxicity"]
    stats = json.loads((out / "stats.json").read_text())
    assert stats["lm_eval"]["rel_boss_sentiment_semeval"]["axis"] == "domain"
    assert len(list(files.read_lines(out / "tasks/data/rel_boss_sentiment_sst5.jsonl"))) == 6


def test_without_the_set_in_distribution(folder):
    (folder / "sets/boss/SentimentAnalysis/amazon/test.tsv").unlink()
    with pytest.raises(InputError, match=r"boss-sentiment: .*amazon, which is in distribution"):
        sets.load("boss-sentiment", str(folder / "sets"), "packages")
    (folder / "sets/boss/NaturalLanguageInference/mnli/test.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match=r"boss-nli: .* laid out otherwise"):
        sets.load("boss-nli", str(folder / "sets"), "packages")


def test_a_row_that_breaks_off_is_named(folder):
    path = folder / "sets/boss/SentimentAnalysis/semeval/test.tsv"
    path.write_text(path.read_text() + "no tab\n")
    with pytest.raises(InputError, match=r"boss-sentiment: .*semeval/test\.tsv, line 17: fewer fields"):
        sets.load("boss-sentiment", str(folder / "sets"), "packages")


def test_a_field_that_is_null_names_the_file(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label,source\ngood,1,rotten_tomatoes\nbad,0\n")
    with pytest.raises(InputError, match=r"reviews\.csv, line 3: fewer fields"):
        sets.load("reviews", str(tmp_path), "packages")
    (tmp_path / "alpaca.json").write_text('[{"instruction": null, "input": ""}]')
    with pytest.raises(InputError, match=r"alpaca: .*alpaca\.json is laid out otherwise or damaged"):
        sets.load("alpaca", str(tmp_path), "packages")


def test_critics_against_viewers(tmp_path):
    long = " ".join(["word"] * (boss.LONGEST + 1))
    rows = [f"critic says {i},{i % 2},rotten_tomatoes" for i in range(6)]
    rows += [f"viewer<br /><br />says {i},{i % 2},imdb" for i in range(6)] + [f"{long},1,imdb"]
    (tmp_path / "reviews.csv").write_text("text,label,source\n" + "\n".join(rows) + "\n")
    found = sets.load("reviews", str(tmp_path), "packages").rows
    assert len(found) == 12
    assert found[6]["sentence"] == "viewer says 0"
    made = lm_tasks.tasks("reviews", found, {"items": 4})
    assert [(name, facts.get("against")) for name, facts, _ in made] == [
        ("rel_reviews_critics", None), ("rel_reviews_viewers", "rel_reviews_critics"),
    ]  # fmt: skip
    assert [len(rows) for *_, rows in made] == [4, 4]


def test_drop_of_the_axis_is_the_mean_over_sets():
    """Set a: 1.0 against 0.5 and 0.0; set b: 0.5 against 0.5. Each set counts the same, whatever its number of domains."""
    right = {"a": [1, 1, 1, 1], "a1": [1, 0, 1, 0], "a2": [0, 0, 0, 0], "b": [1, 0], "b1": [0, 1]}
    found = {
        name: TaskScores(name, [], {"acc": np.array(values, dtype=float)}, [], True, cluster=name)
        for name, values in right.items()
    }
    against = {"a1": "a", "a2": "a", "b1": "b"}
    known = {
        name: {"axis": "domain", "kind": "domains", "set": name[0], "chance": 0.5}
        | ({"against": against[name]} if name in against else {})
        for name in right
    }
    made = {item.task: item.metrics[0].estimate for item in suite.means(found, known, 200, 0)}
    drop = made["reliability/domain_drop"]
    assert drop.value == pytest.approx(((1 - 0.25) + 0.0) / 2)
    assert drop.n == 16
    assert drop.low < drop.value < drop.high
    each = {item.task: item.metrics[0].estimate for item in suite.drops(found, known, 200, 0)}
    assert {name: item.value for name, item in each.items()} == {
        "a1_drop": 0.5,
        "a2_drop": 1.0,
        "b1_drop": 0.0,
    }
