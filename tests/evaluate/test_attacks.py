"""Live attacks: searches against a victim that can be worked out by hand, then the suite on a tiny model, killed and gone on with."""

import math
import random

import project
import pytest
from tiny import tiny_llama

from moesaic.errors import Interrupted
from moesaic.evaluate import compare, kept, likelihood
from moesaic.evaluate.reliability import attacked, attacks, suite, synonyms
from moesaic.evaluate.scores import item_table
from moesaic.flow import files, manifest, signals, step
from moesaic.schema import Evaluate, Reliability

TOK = project.tokenizer_of_library()
WEIGHTS = {"great": 1.5, "clever": 1.0, "warm": 0.4, "fine": 0.7, "okay": 0.2, "sly": -0.5, "film": 0.0}


def victim(asked):
    """A bag of words: log-odds of the right verdict is the sum of the weights."""

    def ask(texts):
        asked.extend(texts)
        odds = [sum(WEIGHTS.get(word, 0.0) for word in text.lower().split()) for text in texts]
        return [(1 / (1 + math.exp(-value)), value > 0) for value in odds]

    return ask


ROW = {
    "sentence": "A great and clever film",
    "synonyms": {"great": ["fine", "okay"], "clever": ["sly"], "film": ["movie"]},
}


def test_pwws_goes_by_saliency_times_loss():
    asked = []
    found = attacks.attack("pwws", ROW, victim(asked))
    p = [1 / (1 + math.exp(-value)) for value in (2.5, 1.0, 1.5, 2.5)]  # whole, without great, clever, film
    saliency = [math.exp(p[0] - value) for value in p[1:]]
    loss = [
        p[0] - 1 / (1 + math.exp(-value)) for value in (1.2, 1.0, 2.5)
    ]  # great -> okay, clever -> sly, film -> movie
    order = [s * d / sum(saliency) for s, d in zip(saliency, loss, strict=True)]
    assert order[0] != pytest.approx(order[1])
    first = "A great and sly film" if order[1] > order[0] else "A okay and clever film"
    assert found["text"] == "A okay and sly film"
    assert (found["clean"], found["attacked"], found["changed"], found["words"]) == (True, False, 2, 5)
    # 1 as it is, 3 without a word, 4 synonyms, then two changes of which the first was asked about already.
    assert found["queries"] == len(set(asked)) == len(asked) == 1 + 3 + 4 + 1
    assert first in asked


def test_pwws_stops_when_the_verdict_turns():
    row = {"sentence": "clever film", "synonyms": {"clever": ["sly"], "film": ["movie"]}}
    found = attacks.attack("pwws", row, victim([]))
    assert found["text"] == "sly film"  # the film is left alone
    assert not found["attacked"]


def test_deepwordbug_begins_with_the_word_that_matters_most():
    found = attacks.attack("deepwordbug", ROW, victim([]))
    before, after = ROW["sentence"].split(), found["text"].split()
    assert not found["attacked"]
    assert [one != other for one, other in zip(before, after, strict=True)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    mild = attacks.attack("deepwordbug", {"sentence": "great sly film", "synonyms": {}}, victim([]))
    assert mild["text"].endswith(" sly film")  # one change turned it


def test_edits_are_few_and_function_words_stay(monkeypatch):
    stubborn = lambda texts: [(1.0 / (1 + text.count("x")), True) for text in texts]  # noqa: E731
    text = "the " + " ".join(f"word{chr(97 + i)}" for i in range(60))
    found = attacks.attack("deepwordbug", {"sentence": text, "synonyms": {}}, stubborn)
    assert found["text"].startswith("the ")
    assert found["attacked"]
    monkeypatch.setattr(attacks, "EDITS", 1)
    words = attacks.deepwordbug(attacks.Search.of("great clever warm", victim([])), {}, "k")
    assert len(words) == 1
    for seed in range(20):
        for changed, cost in attacks.typos("clever", random.Random(seed)):
            assert changed[0] == "c"
            assert distance("clever", changed) <= cost


def distance(a, b):
    """Levenshtein."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (one != other))
    return row[-1]


def test_negations_stay():
    text = "It isn't great, it can\u2019t be, nothing never was; don't CANNOT film"
    search = attacks.Search.of(text, victim([]))
    assert [search.pieces[i] for i in search.words] == ["great", "film"]
    assert search.text({}) == text


@pytest.mark.parametrize("method", list(attacks.METHODS))
def test_a_wrong_verdict_is_left_alone(method):
    found = attacks.attack(method, {"sentence": "sly film", "synonyms": {"sly": ["great"]}}, victim([]))
    assert (found["clean"], found["attacked"], found["queries"], found["changed"]) == (False, False, 1, 0)


def test_capitals_stay():
    assert [attacks.cased("fine", like) for like in ("great", "Great", "GREAT")] == ["fine", "Fine", "FINE"]


def test_figures_by_hand():
    def item(clean, after, queries, changed):
        return {"id": str(queries), "clean": clean, "attacked": after, "queries": queries, "changed": changed, "words": 10}  # fmt: skip

    found = [
        item(True, False, 20, 2),
        item(True, True, 40, 5),
        item(False, False, 1, 0),
        item(True, False, 30, 1),
    ]
    made = attacked.summary("attack/x", [1, 1, 1, 0], found, {"bootstrap": 100}, 0)
    got = {metric.name: metric for metric in made.metrics}
    values = {name: metric.estimate.value for name, metric in got.items()}
    assert values == pytest.approx(
        {
            "acc_clean": 0.75,
            "acc_attacked": 0.25,
            "attack_success": 2 / 3,
            "queries": 30,
            "changed_words": 0.15,
        }
    )
    assert [got[name].estimate.n for name in values] == [4, 4, 3, 3, 2]
    assert got["acc_clean"].chance == 0.75
    assert all(m.estimate.low <= m.estimate.value <= m.estimate.high for m in got.values())
    none = attacked.summary("attack/x", [1, 1], [item(False, False, 1, 0)] * 2, {"bootstrap": 100}, 0)
    assert [metric.name for metric in none.metrics] == ["acc_clean", "acc_attacked"]


# ---------------------------------------------------------------- in the suite


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "sets").mkdir()
    rows = "".join(
        f"this film number {i} was {'great' if i % 2 else 'dull'} for you,{i % 2}\n" for i in range(8)
    )
    (root / "sets/sentences.csv").write_text("sentence,label\n" + rows)
    values = Reliability(
        sets=["sentences"], folder=str(root / "sets"), items=6, texts=0, attacks=["deepwordbug", "pwws"], attack_items=5
    ).model_dump(mode="json")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        words = {"great", "dull", "film"}
        out = (root / "results/prepare/reliability").relative_to(root)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(synonyms, "of", lambda asked: {word: [word[::-1]] for word in words & set(asked)})
            step.execute(step.STEPS["reliability"], {"reliability": values}, {}, out)
        yield manifest.read(out)


def settings():
    return Evaluate(tasks=[], bootstrap=100, batch=4).model_dump(mode="json")


def test_the_step_writes_what_is_attacked(source):
    rows = list(files.read_lines(source.folder / "attack.jsonl"))
    plain = list(files.read_lines(source.folder / "tasks/data/rel_sentences_plain.jsonl"))
    assert len(rows) == 5
    assert [row["sentence"] in item["prompt"] for row, item in zip(rows, plain, strict=False)] == [True] * 5
    assert rows[0]["synonyms"]["film"] == ["mlif"]
    assert "number" not in rows[0]["synonyms"]


def test_a_killed_attack_goes_on(source, tmp_path, monkeypatch):
    model = tiny_llama()
    whole = suite.run(model, TOK, settings(), source, tmp_path / "whole", 0, kept.Identity("m"))
    got = {(item.task, metric.name): metric.estimate for item in whole.tasks for metric in item.metrics}
    by_name = {item.task: item for item in whole.tasks}
    # The attack sees the model as the task of the same sentences does.
    plain = by_name["rel_sentences_plain"].items["acc"][:5]
    assert by_name["attack/pwws"].items["acc_clean"].tolist() == plain.tolist()
    assert got["attack/pwws", "acc_attacked"].value <= got["attack/pwws", "acc_clean"].value
    assert 0 < plain.sum() < 5 or got["attack/pwws", "acc_clean"].value in (0.0, 1.0)

    real, done = attacks.attack, []

    def until_asked(method, row, ask):
        done.append((method, row["number"]))
        if len(done) == 7:
            signals.request_stop()
        return real(method, row, ask)

    monkeypatch.setattr(attacks, "attack", until_asked)
    monkeypatch.setattr(signals, "_stop", type(signals._stop)())
    with pytest.raises(Interrupted, match=r"attack pwws: stopped, 2 of 5 sentences are kept"):
        suite.run(model, TOK, settings(), source, tmp_path / "work", 0, kept.Identity("m"))
    signals._stop.clear()
    again = suite.run(model, TOK, settings(), source, tmp_path / "work", 0, kept.Identity("m"))
    assert len(done) == len(set(done)) == 10
    assert [(item.task, item.metrics) for item in again.tasks] == [
        (item.task, item.metrics) for item in whole.tasks
    ]
    assert again.report == whole.report


def test_paired_with_the_parent(source, tmp_path):
    import numpy as np

    text = likelihood.DomainLoss(np.array([3.0, 4.0]), np.array([8, 9]), np.array([2, 2]), ["a", "b"], None)
    for seed in (0, 1):
        found = suite.run(
            tiny_llama(seed=seed), TOK, settings(), source, tmp_path / str(seed), 0, kept.Identity(f"m{seed}")
        )
        item_table({"d": text}, set(), found.tasks).to_parquet(tmp_path / f"{seed}.parquet")
    rows = {
        (row["task"], row["metric"])
        for row in compare.table(tmp_path / "0.parquet", tmp_path / "1.parquet", 100)
    }
    assert {("attack/pwws", "acc_clean"), ("attack/deepwordbug", "acc_attacked")} <= rows


def test_without_sentences_the_attacks_are_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = Reliability(sets=["lookalikes"], attacks=["pwws"]).model_dump(mode="json")
    out = tmp_path.joinpath("results/prepare/reliability").relative_to(tmp_path)
    step.execute(step.STEPS["reliability"], {"reliability": values}, {}, out)
    assert manifest.read(out).metrics["missing"] == {
        "attacks": "data.reliability.sets: name `sentences`, whose sentences are attacked"
    }


def test_wordnet_files_by_hand(tmp_path):
    """Two senses of `dull` as adjective, with a marker and a compound, and one of another part of speech."""
    first = "00000000 00 a 02 dull 0 leaden(p) 0 000 | lacking in liveliness\n"
    second = f"{len(first):08d} 00 s 03 dull 1 slow_moving 0 boring 0 000 | so lacking\n"
    for pos in synonyms.POS:
        (tmp_path / f"index.{pos}").write_text("  1 licence\n")
        (tmp_path / f"data.{pos}").write_text("")
    (tmp_path / "data.adj").write_text(first + second)
    index = f"dull a 2 2 & ! 2 1 {len(first):08d} 00000000  \ndulled a 1 0 1 0 00000000  \n"
    (tmp_path / "index.adj").write_text("  1 licence\n" + index)
    (tmp_path / "data.verb").write_text("00000000 30 v 01 blunt 0 000 | x\n")
    (tmp_path / "index.verb").write_text("dull v 1 0 1 0 00000000  \n")
    assert synonyms.read(tmp_path, {"dull", "film"}) == {"dull": ["blunt", "boring", "leaden"]}


@pytest.mark.network
def test_wordnet():
    found = synonyms.of(["movie", "bad", "films", "zzz"])
    assert "film" in found["movie"]
    assert "defective" in found["bad"] or "big" in found["bad"]
    assert not {"films", "zzz"} & set(found)
    assert all(name.isalpha() and name != word for word, names in found.items() for name in names)
