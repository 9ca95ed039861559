"""The page and the JSON, on a results folder with the real formats."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report import fake_results
from tiny import tiny_moe

from moesaic.errors import InputError
from moesaic.flow import manifest, paths
from moesaic.model import execution
from moesaic.report import cells, gather, plots, stage_table, summary, svg

VOID = {"meta", "link", "br", "img", "hr", "input", "image", "use", "path"}


class Page(HTMLParser):
    """Elements with their attributes and text; checks that tags are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        config = fake_results.load_config()
        fake_results.build(config)
        yield (*fake_results.report(config), config, Path("results").absolute())


def test_every_figure_has_a_size_and_a_text_equivalent(made):
    html, _, config, _ = made
    page = Page(html)
    figures = page.all("svg")
    trained = len(config.stages) - 1
    variants, domains = len(config.variants), len(config.data.domains)
    # scatter 2, bars per variant, losses per stage, KL of distill, domain losses of pretrain, norm and speed per stage,
    # load maps, load CV per variant and per stage, deviation maps
    expected = 2 + variants + trained + 1 + variants + 2 * trained + variants * len(config.stages)
    expected += variants + trained + variants * domains
    expected += 3  # construction: error, lift, expected load
    assert len(figures) == expected
    for figure in figures:
        assert figure["role"] == "img"
        assert len(figure["aria-label"]) > 30
        _, _, width, height = map(float, figure["viewbox"].split())
        assert width > 100
        assert height > 100
    labels = [figure["aria-label"] for figure in figures]
    assert len(set(labels)) == len(labels)
    assert len(page.all("figure")) == len(page.all("figcaption"))


def test_page_asks_for_nothing(made):
    html, *_ = made
    for tag, attributes in Page(html).elements:
        assert tag not in {"script", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    css = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    assert "@import" not in css
    assert "url(" not in css
    assert "prefers-color-scheme: dark" in css
    assert "@media print" in css


def test_ids_are_unique_and_references_resolve(made):
    html, *_ = made
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in page.elements if (a.get("href") or "").startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)


def test_no_fixed_colours_outside_the_maps(made):
    """A colour that is not a variable would not follow dark mode."""
    html, *_ = made
    for figure in re.findall(r"<svg.*?</svg>", html, re.S):
        found = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", figure))
        assert not found, found


def test_headings_do_not_skip_a_level(made):
    html, *_ = made
    levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_text_of_files_is_escaped(made):
    html, *_ = made
    assert "<b>Water</b>" not in html
    assert "&lt;b&gt;Water&lt;/b&gt; &amp; ice:" in html
    assert "wrote &lt;after&gt; pretrain." in html


def test_equal_files_give_equal_bytes(made, monkeypatch):
    html, found, config, results = made
    monkeypatch.chdir(results.parent)
    first = manifest.read("results").outputs
    again, found_again = fake_results.report(config)
    assert again == html
    assert found_again == found
    assert manifest.read("results").outputs == first


def test_rows_and_verdict_are_the_scores(made):
    html, found, config, results = made
    scores = {
        (s["task"], s["metric"]): s
        for s in json.loads((results / "activation/evaluate/distill/scores.json").read_text())
    }
    parent = {
        (s["task"], s["metric"]): s for s in json.loads((results / "dense/evaluate/scores.json").read_text())
    }
    rows = {row["label"]: row for row in found["rows"]}
    assert list(rows) == ["dense", *(f"{v}/{s}" for v in config.variants for s in config.stages)]
    row = rows["activation/distill"]
    bits, parent_bits = scores["text/average", "bits_per_byte"], parent["text/average", "bits_per_byte"]
    assert row["bits_per_byte"]["value"] == bits["value"]
    assert row["bits_ratio"] == pytest.approx(bits["value"] / parent_bits["value"], abs=1e-6)
    assert row["accuracy"]["ci_low"] == scores["mc/average", "acc"]["ci_low"]
    assert row["load_cv"]["value"] == scores["routing/load_cv", "load_cv"]["value"]
    assert row["speed_ratio"] == pytest.approx(1750 / 1500, abs=1e-6)
    # 512 shared neurons and 1 of 32 experts of 32, of 1536
    assert row["active_ffn"] == pytest.approx((512 + 32) / 1536)
    assert rows["random/pretrain"]["active_ffn"] == pytest.approx(0.5)
    change = 100 * (bits["value"] / parent_bits["value"] - 1)
    for part in (
        "activation after distill runs 35.4 % of",
        f"needs {bits['value']:.3f} bits per byte on the trained domains, the parent {parent_bits['value']:.3f} (+{change:.1f} %)",
        f"multiple choice {100 * scores['mc/average', 'acc']['value']:.1f} % against {100 * parent['mc/average', 'acc']['value']:.1f} %",
        f"random {rows['random/distill']['bits_per_byte']['value']:.3f} (",
    ):
        assert part in found["verdict"]
    assert found["verdict"].replace(" %", "\xa0%").replace(" M", "\xa0M") in Page(html).text


def test_the_best_variant_wins_the_verdict(made):
    rows = made[1]["rows"]
    worse = [
        row | {"bits_per_byte": {**row["bits_per_byte"], "value": 9.0}}
        if row["variant"] == "activation"
        else row
        for row in rows
    ]
    assert stage_table.verdict(worse, made[2].stages).startswith("random after distill")


def test_tables_hold_counts_settings_and_digests(made):
    html, _, _config, results = made
    text = Page(html).text
    stats = json.loads((results / "prepare/documents/stats.json").read_text())
    for item in stats.values():
        assert item["documents_in"] == item["documents_kept"] + sum(
            part["documents"] for part in item["dropped"].values()
        )
        assert f"{item['documents_in']:,}" in text
    for step in ("activation/pretrain", "random/construct", "prepare/tokens"):
        assert manifest.read(results / step).settings_digest[:12] in text
    assert "experts.per_token" in text
    assert 'folder = "results/activation/distill/model"' in text
    assert "lm_eval --model hf --model_args pretrained=results/activation/distill/model" in text
    assert "the largest logit difference to the parent was 3.1e-05 (allowed 0.0024)" in text
    backends = f"{execution.AUTO['cpu']} of Moesaic on a CPU (sorted without a C++ compiler), by {execution.AUTO['cuda']} of transformers on a GPU"
    assert f"experts run by {backends}" in text
    assert "Every step" not in text, "those of rounds and teachers are not in the table"


@pytest.mark.parametrize(
    ("stages", "variants"),
    [
        (["construct"], ["activation"]),
        (["construct", "pretrain"], ["activation", "random"]),
        (["construct", "distill"], ["a", "b", "c"]),
    ],
)
def test_any_stages_and_variants(tmp_path, monkeypatch, stages, variants):
    monkeypatch.chdir(tmp_path)
    config = fake_results.load_config(stages, variants)
    fake_results.build(config)
    html, found = fake_results.report(config)
    Page(html)
    assert len(found["rows"]) == 1 + len(stages) * len(variants)
    assert f"after {stages[-1]} runs" in found["verdict"]
    assert ('id="training"' in html) == (len(stages) > 1)
    assert summary.text(Path("results")).count("\n") >= len(found["rows"]) + 5


def test_preference_tuning_shows_where_questions_went_and_what_was_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages, variants = ["construct", "tune", "preference"], ["activation", "random"]
    config = fake_results.load_config(stages, variants, data={"temporal": {}})
    fake_results.build(config)
    html, _ = fake_results.report(config)
    Page(html)
    section = html.split('id="preference"')[1].split("</section>")[0]
    assert section.count("37.5 %<small>750 of 2,000</small>") == 2, "right answers of both variants"
    assert section.count("5.0 %<small>60 of 1,200</small>") == 2
    assert section.count("25.0 %") == 2, "held-out accuracy"
    assert section.count("<svg") == 4
    assert "pure&lt;time" in section
    assert "pure<time" not in html


def test_missing_evaluations_become_dashes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = fake_results.load_config(["construct", "pretrain"], ["activation"])
    fake_results.build(config)
    inputs = {name: manifest.read(path) for name, path in paths.inputs(config, "report").items()}
    del inputs["activation/evaluate/pretrain"], inputs["prepare/chat"]
    run = gather.gather(paths.plan_step(config, "report").settings, inputs)
    rows = stage_table.rows(run)
    assert rows[-1]["label"] == "activation/pretrain"
    assert rows[-1]["bits_per_byte"] is None
    assert rows[-1]["parameters"] > 0
    assert stage_table.verdict(rows, run.stages) == "No model was evaluated after the last stage."
    assert cells.NOTHING in stage_table.table(run, rows).rows[-1]


def test_summary_text(made, monkeypatch):
    _, found, _config, results = made
    monkeypatch.chdir(results.parent)
    text = summary.text(Path("results"))
    lines = text.splitlines()
    for row in found["rows"]:
        line = next(line for line in lines if line.startswith(f"{row['label']} "))
        assert f"{row['bits_per_byte']['value']:.3f}" in line
        assert f"{row['tokens_per_second']:,.0f}" in line
    assert "results/report.html" in text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in text, "no Makefile here"


def test_summary_without_a_report(tmp_path):
    with pytest.raises(InputError, match=r"summary\.json: not there"):
        summary.text(tmp_path)


def test_active_ffn_counts_dropped_layers_and_dense_students():
    dense = {"layers": 30, "ffn": 1536}
    llama = {"model_type": "llama", "intermediate_size": 1536}
    assert gather.active_ffn(llama | {"num_hidden_layers": 30}, dense) == 1
    assert gather.active_ffn(llama | {"num_hidden_layers": 15}, dense) == 0.5
    moe = {
        "model_type": "mixtral",
        "intermediate_size": 192,
        "num_hidden_layers": 20,
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
    }
    assert gather.active_ffn(moe, dense) == pytest.approx(20 * 3 * 192 / (30 * 1536))
    section = {"model_type": "mixtral", "share": {"0": 0.25, "7": None}}
    skipping = moe | {"model_type": "moesaic_depth", "depth": section}
    assert gather.active_ffn(skipping, dense) == pytest.approx(19.25 * 3 * 192 / (30 * 1536))


@pytest.mark.parametrize(
    ("family", "shape", "expected"),
    [
        ("mixtral", {"experts": 4}, 48 / 96),
        ("granitemoeshared", {"shared": 32, "experts": 4}, 64 / 96),
        ("qwen2_moe", {"shared": 32, "experts": 4, "dense_layers": [1]}, (96 + 2 * 64) / (3 * 96)),
        ("glm4_moe", {"shared": 32, "experts": 8, "dense_layers": [0]}, (96 + 2 * 48) / (3 * 96)),
    ],
)
def test_active_ffn_of_every_family(tmp_path, family, shape, expected):
    """From the configuration that the construction saves: experts of the families have other names, and layers may be dense."""
    tiny_moe(tmp_path, family=family, per_token=2, **shape)
    saved = json.loads((tmp_path / "moe/model/config.json").read_text())
    assert gather.active_ffn(saved, {"layers": 3, "ffn": 96}) == pytest.approx(expected)


def test_long_curves_are_smoothed_and_thinned():
    values = [(step, 5.0 + (step % 2)) for step in range(1, 20_001)]
    steps, found = svg.smoothed(values)
    assert len(steps) == len(found) == svg.MOST_POINTS
    assert steps[-1] == 20_000
    assert np.allclose(found, 5.5, atol=0.01)
    assert len(svg.smoothed(values[:50])[0]) == 50


def test_bars_of_a_broken_model_are_cut_and_labelled(made, monkeypatch):
    *_, config, results = made
    monkeypatch.chdir(results.parent)
    inputs = {name: manifest.read(path) for name, path in paths.inputs(config, "report").items()}
    run = gather.gather(paths.plan_step(config, "report").settings, inputs)
    broken = run.of("random")[0]
    broken.scores["text/web", "bits_per_byte"]["value"] = 31.4
    panels = plots.by_domain(run)
    assert "31.4 ↑" not in panels[0]
    assert "31.4 ↑" in panels[1]


def test_accuracy_that_is_no_better_than_guessing_is_called_so(made):
    found, stages = json.loads(json.dumps(made[1]["rows"])), made[2].stages
    row = next(item for item in found if item["variant"] == "activation" and item["stage"] == stages[-1])
    row["accuracy"] |= {"value": 0.33, "ci_low": 0.26, "ci_high": 0.4, "chance": 0.317, "n": 96}
    words = stage_table.verdict(found, stages)
    assert "which is not told apart from guessing (31.7 %) with 96 items" in words
    assert "of the parent's accuracy" not in words, "a share of what guessing gives says nothing"
    row["accuracy"]["ci_high"] = 0.3
    assert "which is worse than guessing (31.7 %) with 96 items" in stage_table.verdict(found, stages)
    row["accuracy"] |= {"ci_low": 0.32, "ci_high": 0.4}
    assert "of the parent's accuracy (chance 31.7 %)" in stage_table.verdict(found, stages)
    found[0]["accuracy"] |= {"value": 0.0}
    row |= {"accuracy_ratio": None}
    words = stage_table.verdict(found, stages)
    assert "33.0 % against 0.0 % (chance 31.7 %)" in words.replace("\xa0", " "), (
        "one item, and the parent missed it"
    )


def test_cells():
    assert cells.short(134_515_008) == "134.5 M"
    assert cells.short(7_241_732_096) == "7.2 B"
    assert cells.short(999) == "999"
    assert cells.duration(3725) == "1 h 02 min"
    assert cells.duration(59.6) == "1 min 00 s"
    assert cells.signed(-0.051) == "\N{MINUS SIGN}5.1 %"
    assert cells.interval(None, 2) == cells.NOTHING
    alone = {"value": 0.5, "ci_low": None, "ci_high": None}
    assert cells.interval(alone, 2) == "0.50"
    assert "41.0&ndash;59.0" in cells.interval(alone | {"ci_low": 0.41, "ci_high": 0.59}, 1, 100)
    perplexity = {"value": 1234.5678, "ci_low": 98.7654, "ci_high": 3_630_649_060.0}
    assert cells.interval(perplexity, 3) == "1,235<small>98.765&ndash;3.6e9</small>"


def test_construction_shows_error_lift_and_placement(made):
    html, _, _, _ = made
    text = Page(html).text
    assert "Output error" in html
    assert "Lift over independence by layer; means:" in html
    assert "50.0\xa0%" in text or "50.0 %" in text
    assert "31.0\xa0%" in text or "31.0 %" in text
    assert "Why these architectures" in text
    assert "no: &lt;b&gt;" in html, "reasons are text, never markup"
    assert html.count('id="construction"') == 1
