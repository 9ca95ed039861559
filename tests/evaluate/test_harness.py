"""Tasks through the harness, by hand: choices, answers, groups, examples, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from small_models import KINDS, TOK, build

from moesaic.errors import InputError
from moesaic.evaluate import compare, greedy, harness, kept, likelihood, prefix, samples
from moesaic.evaluate.images import drawing
from moesaic.evaluate.scores import item_table, task_scores
from moesaic.generate import sample
from moesaic.schema import Evaluate


def task(folder, name, **kw):
    (folder / name).mkdir(parents=True)
    rows = [
        {
            "q": f"The colour of thing {i} is",
            "c": ["red", "dark blue sky", "green"],
            "y": i % 3,
            "t": f"Some text number {i}.",
        }
        for i in range(6)
    ]
    data = folder / name / "data.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    conf = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "c",
        "doc_to_target": "y",
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": k, "aggregation": "mean", "higher_is_better": True} for k in ("acc", "acc_norm")
        ],
    } | kw
    (folder / name / f"{name}.yaml").write_text(
        yaml.safe_dump({k: v for k, v in conf.items() if v is not None})
    )
    return rows


def settings(*names, **kw):
    return Evaluate(tasks=list(names), bootstrap=100, batch=2, **kw).model_dump(mode="json")


def ll(m, q, c):
    p, ids = TOK(q)["input_ids"], TOK(q + " " + c)["input_ids"]
    x = torch.tensor([ids])
    lp = m(input_ids=x).logits[0].log_softmax(-1)
    return sum(float(lp[i - 1, ids[i]]) for i in range(len(p), len(ids)))


@pytest.mark.parametrize("kind", KINDS)
def test_choice_task_by_hand(kind, tmp_path):
    m = build(kind, 512)
    rows = task(tmp_path, "toy")
    with torch.no_grad():
        s = [[ll(m, r["q"], c) for c in r["c"]] for r in rows]
    want = [float(int(np.argmax(x)) == r["y"]) for x, r in zip(s, rows, strict=False)]
    norm = [
        float(int(np.argmax(np.array(x) / [len(c) for c in r["c"]])) == r["y"])
        for x, r in zip(s, rows, strict=False)
    ]
    (got,) = harness.run(m, TOK, settings("toy"), tmp_path, tmp_path / "w", 0)
    assert got.items["acc"].tolist() == want
    assert got.items["acc_norm"].tolist() == norm
    assert [x.chance for x in got.metrics] == [pytest.approx(1 / 3)] * 2
    assert [(x["asked"], x["choices"], x["right"]) for x in got.answers] == [
        (r["q"], r["c"], r["y"]) for r in rows
    ]
    assert [x["chosen"] for x in got.answers] == [int(np.argmax(x)) for x in s]
    assert [x["key"] for x in got.answers] == got.keys


def test_answers_are_kept_with_the_scores_of_a_task(tmp_path):
    m = build("llama", 512)
    task(tmp_path, "toy")
    asked = (m, TOK, settings("toy"), tmp_path, tmp_path / "w", 0, kept.Identity("this model"))
    (first,), (again,) = harness.run(*asked), harness.run(*asked)
    assert len(list((tmp_path / "w" / "tasks").iterdir())) == 1
    assert again.answers == first.answers
    assert len(first.answers) == 6


def test_more_resamples_ask_nothing_again(tmp_path, monkeypatch):
    """Intervals of means are made from the kept items; those of other metrics never take more than a hundred. As if asked with so many at first."""
    m = build("llama", 512)
    means = [{"metric": k, "aggregation": "mean", "higher_is_better": True} for k in ("acc", "acc_norm")]
    task(tmp_path, "toy", metric_list=[*means, {"metric": "mcc"}])
    few, many, least = (settings("toy") | {"bootstrap": n} for n in (100, 700, 50))
    asked = (tmp_path, tmp_path / "w", 0, kept.Identity("this model"))
    (fresh,) = harness.run(m, TOK, many, tmp_path, tmp_path / "other", 0)
    (first,) = harness.run(m, TOK, few, *asked)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "_evaluate", lambda *_: pytest.fail("asked again"))
        (again,) = harness.run(m, TOK, many, *asked)
        assert {one.name for one in again.metrics} == {"acc", "acc_norm", "mcc"}
        assert again.metrics == fresh.metrics
        assert harness.run(m, TOK, few, *asked)[0].metrics == first.metrics
    assert len(list((tmp_path / "w" / "tasks").iterdir())) == 1
    harness.run(m, TOK, least, *asked)
    assert len(list((tmp_path / "w" / "tasks").iterdir())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prefix_is_lm_evals_own(kind):
    from lm_eval.models.huggingface import HFLM

    from moesaic.evaluate.prefix import SharedPrefixLM

    m = build(kind, 512)
    g = np.random.default_rng(0)
    reqs = []
    for q in range(5):
        p = g.integers(3, 512, int(g.integers(1, 20))).tolist()
        reqs += [((str(q), str(c)), p, g.integers(3, 512, int(g.integers(1, 7))).tolist()) for c in range(4)]
    reqs.append((("long", ""), g.integers(3, 512, 300).tolist(), [5, 6]))
    a = SharedPrefixLM(m, TOK, 3)._loglikelihood_tokens(reqs)
    b = HFLM(pretrained=m, tokenizer=TOK, batch_size=3)._loglikelihood_tokens(reqs, disable_tqdm=True)
    np.testing.assert_allclose([x[0] for x in a], [x[0] for x in b], rtol=1e-4, atol=1e-4)
    assert [x[1] for x in a] == [x[1] for x in b]


def test_rolling_and_generative(tmp_path):
    m = build("llama", 512)
    task(
        tmp_path,
        "roll",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="t",
        doc_to_choice=None,
        metric_list=[{"metric": "bits_per_byte"}],
    )
    task(
        tmp_path,
        "gen",
        output_type="generate_until",
        doc_to_target="t",
        doc_to_choice=None,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    got = {t.task: t for t in harness.run(m, TOK, settings("gen", "roll"), tmp_path, tmp_path / "w", 0)}
    e = got["roll"].metrics[0].estimate
    assert e.low < e.value < e.high
    assert got["gen"].metrics[0].estimate.value == 0.0


def likeliest(m, prompt, count):
    """Greedy, without cache and padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(m(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("contrasted", [False, True])
def test_generated_answers_end_where_the_template_ends_a_turn(contrasted, monkeypatch):
    """A base model with a chat template of its own says <|im_end|> and goes on; what stands behind it is no part of the answer."""
    from lm_eval.api.instance import Instance

    from moesaic.evaluate.dola import Dola, DolaLM
    from moesaic.evaluate.prefix import SharedPrefixLM

    m = build("llama", 512)
    lm = DolaLM(m, TOK, 2, Dola((1,), 0.1)) if contrasted else SharedPrefixLM(m, TOK, 2)
    asked = [
        Instance(
            "generate_until", {}, (text, {"until": ["<never>"], "max_gen_toks": 8, "do_sample": False}), i
        )
        for i, text in enumerate(("def run(self):", "return 2"))
    ]
    # Numbers for text, as decoding is not one to one; padding is special, and not decoded.
    lm.tok_decode = lambda ids, **_: (
        " ".join(str(i) for i in ids if i != TOK.pad_token_id) if isinstance(ids, list) else "<end>"
    )
    monkeypatch.setattr("moesaic.generate.decode.chat_template.end_of_turn", lambda _: None)
    whole = [text.split() for text in lm.generate_until(asked)]
    end = next(token for token in whole[0][2:] if token not in whole[0][:2])
    monkeypatch.setattr("moesaic.generate.decode.chat_template.end_of_turn", lambda _: int(end))
    found = [text.split() for text in lm.generate_until(asked)]
    assert found == [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert len(found[0]) < len(whole[0])


def test_instructions_are_put_with_the_templates_fixed_day():
    """What the harness puts to a model is what it was tuned on, and the same after midnight."""
    import copy

    from moesaic.evaluate.prefix import SharedPrefixLM
    from moesaic.generate.sample import chat_prompt

    dated = copy.deepcopy(TOK)
    dated.chat_template = '{{ strftime_now("%d %b %Y") }}' + TOK.chat_template
    text = SharedPrefixLM(build("llama", 512), dated, 2).apply_chat_template(
        [{"role": "user", "content": "Which day?"}]
    )
    assert text.startswith("26 Jul 2024")
    assert dated(text, add_special_tokens=False)["input_ids"] == chat_prompt(dated, "Which day?")


def test_samples_end_and_are_counted_where_an_answer_ends(monkeypatch):
    """Prompts of several lengths in one batch, each as alone; padding behind an end is neither text nor a token that was made."""
    m = build("llama", 512)
    prompts = [TOK(text, add_special_tokens=False)["input_ids"] for text in samples.PROMPTS]
    prompts.append(sample.chat_prompt(TOK, samples.QUESTION))
    whole = [likeliest(m, prompt, 12) for prompt in prompts]
    end = next(token for token in whole[0][2:] if token not in whole[0][:2])
    monkeypatch.setattr("moesaic.evaluate.greedy.end_tokens", lambda *_: {511, end})
    rows = [ids[: ids.index(end) + 1] if end in ids else ids for ids in whole]
    assert len(rows[0]) < 12
    assert greedy.answers(m, TOK, prompts, 12) == rows
    found, made, _ = samples.generate(m, TOK, 12)
    assert [one["text"] for one in found] == [TOK.decode(row, skip_special_tokens=True) for row in rows]
    assert made == sum(map(len, rows))
    texts = drawing.describe(m, TOK, prompts)
    assert texts[0] == TOK.decode(rows[0], skip_special_tokens=True).strip()


def test_a_group_counts_once_in_the_average(tmp_path):
    """Two subjects and one other task: the subjects' items are one half of the average, also beside another model."""
    m = build("llama", 512)
    for name in ("anatomy", "botany", "toy"):
        task(tmp_path, name)
    group = {"group": "subjects", "task": ["anatomy", "botany"]}
    (tmp_path / "subjects.yaml").write_text(yaml.safe_dump(group))
    asked = (m, TOK, settings("subjects", "toy"), tmp_path, tmp_path / "w", 0, kept.Identity("this model"))
    found = {score.task: score for score in harness.run(*asked)}
    assert {name: score.asked for name, score in found.items() if score.items} == {
        "anatomy": "subjects", "botany": "subjects", "toy": "toy",
    }  # fmt: skip
    assert [score.asked for score in harness.run(*asked)] == [score.asked for score in found.values()], "kept"

    right = {"anatomy": [1, 1, 0, 0, 0, 0], "botany": [0, 0, 0, 0, 0, 1], "toy": [1, 1, 1, 1, 1, 0]}
    made = []
    for wrong in (0, 1):
        values = {name: np.array(row, dtype=float) * (1 - wrong) for name, row in right.items()}
        scores = [replace(found[name], items={"acc": values[name]}) for name in right]
        (entry,) = (one for one in task_scores(scores, 200, 0) if one["task"] == "mc/average")
        assert entry["value"] == pytest.approx((1 - wrong) * (3 / 12 + 5 / 6) / 2, abs=1e-6)
        assert (entry["n"], entry["chance"]) == (18, pytest.approx(1 / 3, abs=1e-6))
        made.append(tmp_path / f"{wrong}.parquet")
        text = likelihood.DomainLoss(*np.ones((3, 2)), ["a", "b"], None)
        item_table({"d": text}, set(), scores).to_parquet(made[-1])
    value, low, high, n = compare.paired(*made, "mc/average")
    assert (value, n) == (pytest.approx((3 / 12 + 5 / 6) / 2), 18)
    assert low < value < high
    assert compare.paired(*made, "botany")[0] == pytest.approx(1 / 6)


def test_a_choice_task_without_accuracies_is_no_part_of_the_average(tmp_path):
    """As cola, which has its correlation alone: the others' average is compared all the same."""
    texts = likelihood.DomainLoss(*np.ones((3, 2)), ["a", "b"], None)
    made = []
    for right in (1.0, 0.0):
        values = {name: {"acc": np.array([right, 1.0, 0.0])} for name in ("piqa", "arc")} | {"cola": {}}
        tasks = [harness.TaskScores(name, [], items, ["x", "y", "z"], True) for name, items in values.items()]
        (entry,) = (one for one in task_scores(tasks, 100, 0) if one["task"] == "mc/average")
        assert entry["n"] == 6
        made.append(tmp_path / f"{right}.parquet")
        item_table({"d": texts}, set(), tasks).to_parquet(made[-1])
    assert ("mc/average", "acc") in {(row["task"], row["metric"]) for row in compare.table(*made, 100)}
    value, _, _, n = compare.paired(*made, "mc/average")
    assert (value, n) == (pytest.approx(1 / 3), 6)


SPLITS = {
    "test only": ({"test_split": "test"}, True),
    "test, examples from test": ({"test_split": "test", "fewshot_split": "test"}, False),
    "test and training": ({"test_split": "test", "training_split": "other"}, False),
    "test and validation": ({"test_split": "test", "validation_split": "other"}, False),
    "test, examples from another": ({"test_split": "test", "fewshot_split": "other"}, False),
    "test, examples written down": (
        {"test_split": "test", "fewshot_config": {"samples": [{"q": f"Q {i}", "c": ["a", "b"], "y": 0} for i in range(9)]}},
        False,
    ),
    "validation only": ({"test_split": None, "validation_split": "test"}, False),
    "validation, examples from it": (
        {"test_split": None, "validation_split": "test", "fewshot_split": "test"}, True,
    ),
    "test that is the training split": ({"test_split": "test", "training_split": "test"}, True),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_no_prompt_holds_its_own_answer(name, tmp_path):
    """What is refused is what lm-eval's prompts show, over all items."""
    from lm_eval.tasks import TaskManager

    splits, refused = SPLITS[name]
    data = str(tmp_path / "toy" / "data.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"q": f"Other {i}", "c": ["a", "b"], "y": 0, "t": ""}) + "\n" for i in range(6))
    )
    rows = task(tmp_path, "toy", dataset_kwargs={"data_files": {"test": data, "other": str(other)}}, **splits)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with harness._quiet(tmp_path / "w"):
        loaded = harness._load(manager, ["toy"])["tasks"]
        if refused:
            with pytest.raises(
                InputError, match=r"evaluate\.task_shots\.toy: 4 examples, but toy has no split"
            ):
                harness._set_shots(loaded, 4, 0, "evaluate.task_shots.toy")
            harness._set_shots(loaded, 0, 0, "evaluate.shots")
            loaded["toy"].set_config(key="num_fewshot", value=4)
            loaded["toy"].set_fewshot_seed(seed=0)
        else:
            harness._set_shots(loaded, 4, 0, "evaluate.task_shots.toy")
        asked = list(loaded["toy"].test_docs() or loaded["toy"].validation_docs())
        prompts = [loaded["toy"].fewshot_context(doc, 4) for doc in asked]
    answered = [f"{row['q']} {row['c'][row['y']]}" in text for row, text in zip(rows, prompts, strict=True)]
    assert any(answered) == refused


def test_more_examples_than_there_are_is_named(tmp_path):
    from lm_eval.tasks import TaskManager

    task(
        tmp_path,
        "toy",
        test_split="test",
        fewshot_config={"samples": [{"q": "Q", "c": ["a", "b"], "y": 0}] * 3},
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with harness._quiet(tmp_path / "w"):
        loaded = harness._load(manager, ["toy"])["tasks"]
        harness._set_shots(loaded, 3, 0, "evaluate.shots")
        with pytest.raises(InputError, match=r"evaluate\.shots: 4 examples, and toy has 3 to show"):
            harness._set_shots(loaded, 4, 0, "evaluate.shots")


def test_packs_are_bounded_and_long_prompts_are_told(monkeypatch, caplog):
    """A mask of L x L: thousands of requests after one token must not become one sequence of the whole context."""
    monkeypatch.setattr(prefix, "PACKED", 40)
    model = build("llama")
    lm = prefix.SharedPrefixLM(model, TOK, 4, "toy")
    requests = [(("", ""), [1], [5 + i % 7] * 9) for i in range(30)]
    longest = []
    own = prefix.score
    monkeypatch.setattr(
        prefix, "score", lambda m, group: longest.extend(p.length for p in group) or own(m, group)
    )
    found = lm._loglikelihood_tokens(requests)
    assert 9 < max(longest) <= 40
    alone = prefix.score(model, [prefix.Packed([1], [[6] * 9], [0])])[0]
    assert found[1] == (pytest.approx(alone[0], abs=1e-4), alone[1])
    lm._loglikelihood_tokens([(("", ""), [5] * (lm.max_length + 3), [6]), *requests[:2]])
    assert "toy: 1 of 3 prompts are longer than the context" in caplog.text


def test_a_probability_is_no_accuracy(tmp_path):
    """truthfulqa_mc2: guessing gives the share of true answers and not 1 / choices."""
    task(tmp_path, "mass", process_results="!function mass.results", metric_list=[{"metric": "acc"}])
    written = tmp_path / "mass" / "mass.yaml"
    written.write_text(written.read_text().replace("'!function mass.results'", "!function mass.results"))
    (tmp_path / "mass" / "mass.py").write_text(
        "def results(doc, results):\n    return {'acc': 0.25 + 0.5 * (doc['y'] == 0)}\n"
    )
    (found,) = harness.run(build("llama"), TOK, settings("mass"), tmp_path, tmp_path / "w", 0)
    assert [metric.chance for metric in found.metrics] == [None]
    assert not found.multiple_choice
    assert not [row for row in task_scores([found], 50, 0) if row["task"] == "mc/average"]


def test_examples_from_the_items_themselves_are_refused(tmp_path):
    task(tmp_path, "toy")
    for values, key in (
        ({"shots": 2}, r"evaluate\.shots"),
        ({"task_shots": {"toy": 2}}, r"evaluate\.task_shots\.toy"),
    ):
        with pytest.raises(InputError, match=f"{key}: 2 examples, but toy has no split"):
            harness.run(build("llama"), TOK, settings("toy", **values), tmp_path, tmp_path / "w", 0)


def test_unknown_task(tmp_path):
    with pytest.raises(InputError, match="nope"):
        harness.run(build("llama"), TOK, settings("nope"), tmp_path, tmp_path / "w", 0)


def test_data_that_a_killed_evaluation_left_is_cleared(tmp_path):
    task(tmp_path, "one")
    for name in ("datasets-dead/json", "tasks"):
        (tmp_path / "w" / name).mkdir(parents=True)
    harness.run(build("llama"), TOK, settings("one"), tmp_path, tmp_path / "w", 0)
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["tasks"]
