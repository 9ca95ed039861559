"""The verifier: many ways to write an answer, and texts that answer twice or not at all."""

import importlib.util
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.evaluate.temporal import lm_tasks
from moesaic.evaluate.temporal.item import Item
from moesaic.evaluate.temporal.values import kind_of, value_of, values
from moesaic.evaluate.temporal.verify import grade, letter, prompt, short, verify
from moesaic.evaluate.temporal.words import clock12, clock24, duration

TIMES = ["2:30 PM", "3:30 PM", "2:30 AM", "3:30 AM"]
EVENTS = ["the fall of the Berlin Wall", "the first Moon landing", "the fall of the Berlin Wall and after"]


@pytest.mark.parametrize(
    "text",
    [
        "B", "(B)", "[B]", "B.", "B)", "b", "(b)", "B:", "**B**", "Answer: B", "answer: (B)", "The answer is B.", "The correct answer is (B).",
        "So the final answer is B, because it is an hour later.", "It is option B.", "Choice B", "\\boxed{B}", "The answer is \\boxed{\\text{B}}",
        "#### B", "The answer is (B) 3:30 PM.", "B. 3:30 PM", "(B) 3:30 PM", "3:30 PM", "3.30 pm", "15:30", "It is 3:30 p.m.", "half an hour later it is 3:30 PM",
        "First I thought the answer is A. But no: the answer is B.", "Answer: A\nWait, that forgets the carry.\nAnswer: B",
        "<think>Perhaps (A) or (C).</think>\nThe answer is (B).", "The answer is\nB", "the answer is B because A is too early",
        "Answer: The time is 3:30 PM.",
        "B\n\nExplanation: one hour is added to 2:30 PM.", "B\nBecause 2 + 1 = 3.", "B, because one hour is added.", "B is correct.", "**B** is right.",
        "(B)\n\nOne hour is added to 2:30 PM.", "B.\nThe first is 2:30 PM, the second 3:30 PM.", "b\n\nFrom 2:30 PM on.", "B is the correct one, A is not.",
        "B because 2:30 PM and an hour are 3:30 PM", "\n B \n\n(A) forgets the hour.", "B\n\n2:30 AM is half a day off.", "(B) 3:30 PM\n\n(not 2:30 PM)",
        "B\n\nExplanation:\nA. 2:30 PM forgets the hour.", "2:30 PM is too early. The answer is B", "B - an hour later\nFrom 2:30 PM on",
    ],
)  # fmt: skip
def test_letters_in_many_forms(text):
    assert letter(text, TIMES) == "B"
    assert grade("B", TIMES, text)
    assert not grade("A", TIMES, text)


@pytest.mark.parametrize(
    "text",
    [
        "", "I do not know.", "A or B", "The answer is A or B.", "(A) and (B)", "The answer is (B) or (C)", "Answer: A/B", "Either B, C",
        "The answer is (B) 2:30 PM.", "(B) 3:30 AM", "The answer is not B.", "E", "(E)", "The answer is E.", "4:30 PM", "2:30 PM or 3:30 PM",
        "A. 2:30 PM\nB. 3:30 PM\nC. 2:30 AM\nD. 3:30 AM", "A B C D", "Because of that.", "BBB", "The answer is B and C",
        "A or B\n\nBoth are an hour off.", "(B) 2:30 PM\nOne hour is added.", "A\nB\nC\nD", "A) 2:30 PM\nB) 3:30 PM\n\nOne of the two.", "A, B\nOne of them.",
        "(A) is wrong, (B) is right.", "B is wrong.", "B is not correct.", "A clock shows 2:30 PM.\nLater it shows 3:30 PM, 3:30 AM.", "A/B\nThat is the question.",
        "A-levels last an hour.\n2:30 PM or 3:30 PM", "A.M. or P.M.?\nI cannot say.",
    ],
)  # fmt: skip
def test_no_letter_or_two_letters_are_no_answer(text):
    assert letter(text, TIMES) is None
    assert not any(grade(name, TIMES, text) for name in "ABCD")


def test_the_article_is_no_letter():
    weeks = ["a week", "a month", "a year"]
    assert letter("The answer is a month", weeks) == "B"
    assert letter("The answer is A month", weeks) == "B"
    assert letter("A", weeks) == "A"
    assert letter("It takes a year.", weeks) == "C"


def test_a_choice_inside_another_is_not_taken_for_it():
    assert letter("the fall of the Berlin Wall and after", EVENTS) == "C"
    assert letter("It was the fall of the Berlin Wall.", EVENTS) == "A"
    assert letter("The first moon landing", EVENTS) == "B"
    assert letter("The first moon landing came before the fall of the Berlin Wall", EVENTS) is None


def test_an_initial_is_no_letter():
    people = [
        "the assassination of John F. Kennedy",
        "the resignation of Richard Nixon",
        "the fall of A. B. C.",
    ]
    assert letter("It was the assassination of John F. Kennedy.", people) == "A"
    assert letter("(B) the resignation of Richard Nixon", people) == "B"
    assert letter("(J) the resignation of Richard Nixon", people) is None


@given(st.text(alphabet="ABCD()[].: \norandswei", max_size=40))
@settings(max_examples=300, deadline=None)
def test_at_most_one_letter_is_right(text):
    assert sum(grade(name, TIMES, text) for name in "ABCD") <= 1


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("3:05 PM", ["3:05 PM", "3:05pm", "03:05 p.m.", "15:05", "It will be 15:05.", "The answer is 3:05 PM", "2:50 PM plus 15 minutes is 3:05 PM"],
         ["3:05 AM", "3:05", "3:50 PM", "3:05 PM or 3:06 PM", "2:05 PM", "15.05.2020", "not 3:05 PM", "The answer is not 3:05 PM", ""]),
        ("12:00 PM", ["noon", "12:00", "12 PM", "midday"], ["midnight", "12:00 AM", "0:00"]),
        ("00:15", ["00:15", "12:15 AM", "0:15"], ["12:15", "12:15 PM"]),
        ("March 5, 2024", ["March 5, 2024", "5 March 2024", "the 5th of March 2024", "2024-03-05", "Mar. 5th, 2024", "Tuesday, March 5, 2024", "2024/3/5"],
         ["March 5", "5 May 2024", "2024-05-03", "03/05/2024", "March 5, 2023", "March 5 or March 6, 2024", "March 4, 2024 to March 5, 2024"]),
        ("March 25, 2024", ["03/25/2024", "25/03/2024", "25.03.2024"], ["03/24/2024"]),
        ("December 12", ["December 12", "12 December", "Dec 12th"], ["December 12, 2020", "December 21", "12"]),
        ("May 2022", ["May 2022", "May, 2022"], ["May", "2022", "May 5, 2022", "June 2022"]),
        ("05:30 on March 6, 2024", ["05:30 on March 6, 2024", "5:30 AM, 6 March 2024", "2024-03-06 05:30"],
         ["05:30", "March 6, 2024", "05:30 on March 5, 2024", "17:30 on March 6, 2024"]),
        ("2 hours 35 minutes", ["2 hours 35 minutes", "2 hours and 35 minutes", "155 minutes", "2h35m", "2 h 35 min", "two hours, thirty-five minutes", "about 155 minutes"],
         ["2 hours", "35 minutes", "2 hours 25 minutes", "155", "2:35 PM", "155 hours", "2 hours or 35 minutes"]),
        ("3 days", ["3 days", "about 3 days", "three days", "72 hours", "3", "It took them 3 days."],
         ["3 to 5 days", "2-3 days", "3 weeks", "3 hours", "between 2 and 3 days", "3 days or 4 days", "30 days"]),
        ("90 minutes", ["an hour and a half", "1.5 hours", "1 1/2 hours", "90", "one and a half hours"], ["an hour", "half an hour"]),
        ("1 year", ["12 months", "a year", "1"], ["365 days", "a month"]),
        ("12", ["12", "twelve", "It is week 12.", "The 12th", "12.0"], ["13", "112", "12:30", "1.2", "11 or 12", "-12"]),
        ("1987", ["1987", "In 1987."], ["1986", "1986 or 1987", "19"]),
        ("1240", ["1,240", "1240"], ["1,24", "240"]),
        ("twice a week", ["twice a week", "two times a week", "2 times per week"], ["once a week", "twice a day", "every week"]),
        ("every other day", ["every other day", "every two days", "once every 2 days"], ["every day", "every week"]),
        ("once a month", ["monthly", "every month", "once a month"], ["twice a month", "every 30 days"]),
        ("Tuesday", ["Tuesday", "It is a tuesday.", "From Monday it moves to Tuesday, so the answer is Tuesday"], ["Monday", "Monday or Tuesday", "Tues or Wed"]),
        ("May", ["May", "It is May", "May."], ["June", "It may be June", "May or June"]),
        ("entailment", ["entailment", "Entailment.", "The answer is entailment", "It is an entailment."],
         ["contradiction", "not entailment", "entailment or neutral", "neutral"]),
        ("before", ["before", "It is before."], ["immediately before", "after", "before or after"]),
        ("immediately before", ["immediately before"], ["before"]),
        ("Kofi", ["Kofi", "It is Kofi.", "Kofi does.", "The answer is Kofi"], ["Hana", "Kofi or Hana", "not Kofi", "Hana is quicker than Kofi"]),
        ("the first Moon landing", ["The first moon landing", "first Moon landing happened first"], ["the Moon", "Gagarin's flight before the first Moon landing"]),
        ("Hull City | Hull City A.F.C.", ["Hull City", "Hull City A.F.C."], ["Grimsby Town"]),
    ],
)  # fmt: skip
def test_short_answers(gold, right, wrong):
    assert {text: short_any(gold, text) for text in right} == dict.fromkeys(right, True)
    assert {text: short_any(gold, text) for text in wrong} == dict.fromkeys(wrong, False)


def short_any(gold, text):
    return grade(gold, [], text)


def test_the_last_explicit_answer_wins():
    assert short("16:00", "The answer is 15:00.\nNo, I forgot the carry. The answer is 16:00.")
    assert not short("15:00", "The answer is 15:00.\nNo, I forgot the carry. The answer is 16:00.")
    assert short("16:00", "14:30 plus 90 minutes is 16:00.")
    assert not short("14:30", "14:30 plus 90 minutes is 16:00.")
    assert short("16:00", "16:00\nBecause the meeting is longer than planned.")
    assert not short("16:00", "16:00\nBecause it ends at 17:00.")
    assert short("16:00", "We start at 14:30.\n14:30 + 1:30 = 16:00")


@given(st.integers(0, 1439))
@settings(deadline=None)
def test_clock_notations_agree(minute):
    assert value_of(clock12(minute)) == value_of(clock24(minute)) == (60 * minute,)
    assert short(clock12(minute), clock24(minute))
    assert not short(clock12(minute), clock24(minute + 1))


@given(st.integers(1, 5000))
@settings(deadline=None)
def test_durations_agree(count):
    assert value_of(duration(count)) == value_of(f"{count} minutes") == (0, 60 * count)
    assert kind_of(duration(count)) == "duration"


def test_figures_that_may_be_read_in_two_ways_are_no_date():
    assert values("date", "03/05/2024") == []
    assert values("date", "05/05/2024") == [(2024, 5, 5)]
    assert values("date", "2023-02-29") == []


def test_prompt_shows_letters_and_the_form_of_the_answer():
    item = Item("x", "year_shift", "math-time", "When?", "B", ("1", "2", "3"))
    assert prompt(item) == "Question: When?\n(A) 1\n(B) 2\n(C) 3\nAnswer with the letter of the right choice."
    for gold, form in (
        ("3:05 PM", "7:05 AM"),
        ("15:05", "14:05"),
        ("March 5", "March 5."),
        ("3 days", "2 hours 5 minutes"),
        ("Ada", "few words"),
    ):
        assert form in prompt(Item("x", "year_shift", "math-time", "When?", gold))


def test_the_checker_file_runs_alone(tmp_path):
    """In a Python that sees neither moesaic nor site-packages, with the same verdicts."""
    path = tmp_path / "temporal_verify.py"
    path.write_text(lm_tasks.checker())
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import temporal_verify as t\n"
        "assert t.process_results({'prompt': 'When?', 'answer': 'B', 'choices': ['1', '2']}, ['the answer is (B)']) == {'acc': 1.0}\n"
        "assert t.process_results({'prompt': 'How long?', 'answer': '2 hours', 'choices': []}, ['120 minutes']) == {'acc': 1.0}\n"
        "assert t.process_results({'prompt': 'How many hours?', 'answer': '2 hours', 'choices': []}, ['120 minutes']) == {'acc': 0.0}\n"
        "assert not any(m.startswith('moesaic') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
    spec = importlib.util.spec_from_file_location("checker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for gold, choices, text in (
        ("B", TIMES, "15:30"),
        ("B", TIMES, "A or B"),
        ("3 days", [], "about 3 days"),
        ("May", [], "It may be June"),
    ):
        assert (
            module.grade(gold, choices, text)
            == grade(gold, choices, text)
            == verify(Item("x", "y", "math-time", "", gold, tuple(choices)), text)
        )


def test_of_a_comparison_the_longer_side_is_the_answer():
    assert short("9 days", "9 days is longer than 85 hours.")
    assert not short("9 days", "85 hours is longer than 9 days.")
    assert short("9 days", "The answer is 9 days")


def test_a_sentence_that_begins_with_its_answer():
    for text in (
        "February 4 is 30 days after January 5.",
        "February 4, 2024 is exactly 30 days after January 5, 2024",
        "30 days after January 5, 2024 is February 4, 2024.",
        "January 5 plus 30 days is February 4, 2024",
    ):
        assert short("February 4, 2024" if "2024" in text else "February 4", text), text
        assert not short("January 5, 2024" if "2024" in text else "January 5", text), text
    assert short("4:00 PM", "4:00 PM is 90 minutes after 2:30 PM.")
    assert short("4:00 PM", "4:00 PM comes 1 hour 30 minutes later than 2:30 PM.")
    assert not short("4:00 PM", "2:30 PM is 90 minutes before 4:00 PM.")


def test_who_does_it_most_often_in_a_sentence():
    for text in (
        "Ben",
        "Ben waters the plants most often.",
        "It is Ben",
        "Ben does.",
        "Ben visited her most often",
    ):
        assert short("Ben", text), text
    for text in (
        "Ada",
        "Ben or Ada",
        "Ben waters the plants as often as Ada.",
        "Ben does not.",
        "Ben is not the one",
        "Bens",
        "Ada, and then Ben",
    ):
        assert not short("Ben", text), text


def test_a_question_that_asks_how_many_of_a_unit_wants_that_unit():
    question = "2 days are how many hours?"
    for text in ("48 hours", "48", "The answer is 48 hours.", "2 days are 48 hours", "48 hrs", "48 h"):
        assert short("48 hours", text, question), text
    for text in ("2 days", "The answer is 2 days.", "2880 minutes", "47 hours"):
        assert not short("48 hours", text, question), text
    assert short("48 hours", "2 days", "How long does it take?")
    item = Item("x", "duration_facts", "pure-time", question, "48 hours")
    assert not verify(item, "2 days")
    assert verify(item, "48 hours")


def test_equally_long_in_other_words():
    for text in (
        "They are equally long.",
        "equally long",
        "Both are equally long",
        "the two durations are equally long",
        "Answer: they are both equally long",
    ):
        assert short("they are equally long", text), text
    for text in ("they are not equally long", "9 days", "one is longer"):
        assert not short("they are equally long", text), text


def test_the_form_that_is_asked_for_does_not_tell_the_class_of_the_answer():
    question = "Which is longer: 2 days or 48 hours, or are they equally long?"
    asked = {
        prompt(Item("x", "y", "pure-time", question, gold)) for gold in ("2 days", "they are equally long")
    }
    assert len(asked) == 1
    question = "It rained in 1999.\nIf the text does not say, answer unanswerable. When did it rain?"
    assert (
        len({prompt(Item("x", "y", "pure-time", question, gold)) for gold in ("unanswerable", "1999")}) == 1
    )
