"""The temporal tables: only where the suite was run; chance and interval beside every number."""

import dataclasses

from moesaic.report import sections, temporal


def entry(value, chance, n=50):
    return {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "chance": chance, "n": n}


SCORES = {
    ("temporal_math_time", "acc"): entry(0.31, 0.25, 950),
    ("temporal_pure_time_short@5", "acc"): entry(0.125, 0.07, 600),
    ("temporal_year_shift", "acc"): entry(0.28, 0.25),
    ("temporal_relation_short@5", "acc"): entry(0.1, 0.12),
    ("temporal_mctaco_frequency", "acc"): entry(0.6, 0.5),
    ("temporal_shift_short", "acc"): entry(0.3, 0.25),
    ("temporal_shift_short_short@5", "acc"): entry(0.1, 0.05),
}


def test_no_section_without_the_suite(run):
    assert temporal.means(run) is None
    assert temporal.tasks(run) is None
    assert sections._temporal(run) == ""


def test_means_and_tasks(run):
    dense = dataclasses.replace(run.points[0], scores=run.points[0].scores | SCORES)
    asked = dataclasses.replace(run, points=[dense, *run.points[1:]])
    means, tasks = temporal.means(asked), temporal.tasks(asked)
    assert [row[:5] for row in means.rows] == [
        ["math-time", "multiple choice", "0", "950", "25.0"],
        ["pure-time", "short answer", "5", "600", "7.0"],
    ]
    assert means.rows[0][5] == "31.0<small>21.0&ndash;41.0</small>"
    assert [row[:4] for row in tasks.rows] == [
        ["year shift", "math-time", "multiple choice", "0"],
        ["relation", "pure-time", "short answer", "5"],
        ["mctaco frequency", "out-of-domain", "multiple choice", "0"],
        ["shift short", "math-time", "multiple choice", "0"],
        ["shift short", "math-time", "short answer", "5"],
    ]
    assert "<details>" in sections._temporal(asked)
    # A model that was not evaluated has a dash, not a number.
    assert {row[-1] for row in tasks.rows} == {'<span class="none">&ndash;</span>'}
    assert len(means.head) == len(means.rows[0]) == 5 + len(run.points)
    assert len(tasks.head) == len(tasks.rows[0]) == 6 + len(run.points)
