"""Answers that changed beside the dense parent's."""

from report import fake_results

from moesaic.report import answers


def test_turned_answers_are_counted_in_both_directions(run):
    table = answers.counts(run)
    tasks = len(fake_results.TASKS)
    assert [row[0] for row in table.rows] == [
        f"<b>{variant}/{run.stages[-1]}</b>" for variant in run.variants
    ]
    for row in table.rows:
        assert list(row[1:]) == [str(n * tasks) for n in (5, 3, 3, 1, 1)]


def test_examples_come_from_each_task_in_turn_and_are_escaped(run):
    found = answers.examples(run)
    assert [title for title, _ in found][:2] == [
        f"{run.variants[0]}/{run.stages[-1]}: {kind}" for kind in (answers.LOST, answers.WON)
    ]
    lost = found[0][1]
    assert [
        task for task in fake_results.TASKS if any(f"<h3>{task}</h3>" in article for article in lost)
    ] == list(fake_results.TASKS)
    assert "Question 2 of" in lost[0]
    assert "is &lt;b&gt; &amp; c?" in lost[0]
    assert '<b>no</b> <span class="quiet">(right answer, dense)</span>' in lost[0]
    assert 'yes &lt;really&gt; <span class="quiet">(this model)</span>' in lost[0]


def test_nothing_is_shown_where_the_parent_kept_no_answers(run):
    run.dense.choices.clear()
    assert answers.counts(run) is None
    assert answers.examples(run) == []
