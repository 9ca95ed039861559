"""The 38 tasks of Timo (arXiv 2406.14192, figure 2): 19 answered by arithmetic, 19 by knowledge of time; all are parts of TRAM (2310.00835).

A task that cannot be generated with an exact answer (it asks what people find likely, or how a story goes on) is read from
published files only; it is never faked.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["math-time", "pure-time"]


@dataclass(frozen=True)
class Task:
    """One task: what it is called where, and where its items come from."""

    kind: Kind
    file: str
    """TRAM's file: {file}_mcq.csv, {file}_saq.csv, {file}_shots_mcq.csv."""
    category: str | None
    """The value of TRAM's Category column; None: the file is one task (its last column is Source)."""
    source: str
    """What TRAM made it from."""
    generated: bool = True
    """True: there is a generator with an exact solver in generators/."""


def _math(file: str, category: str, source: str) -> Task:
    return Task("math-time", file, category, source)


def _pure(file: str, category: str | None, source: str, generated: bool = True) -> Task:
    return Task("pure-time", file, category, source, generated)


TASKS: dict[str, Task] = {
    "shift_short": _math("ambiguity_resolution", "Shift - ST", "templates"),
    "shift_medium": _math("ambiguity_resolution", "Shift - MT", "templates"),
    "shift_long": _math("ambiguity_resolution", "Shift - LT", "templates"),
    "shift_calendar": _math("ambiguity_resolution", "Shift - Calendar", "code (calendar conversion)"),
    "hour_adjustment_24h": _math("arithmetic", "Hour Adjustment (24h)", "code"),
    "hour_adjustment_12h": _math("arithmetic", "Hour Adjustment (12h)", "code"),
    "year_shift": _math("arithmetic", "Year Shift", "code"),
    "month_shift": _math("arithmetic", "Month Shift", "code"),
    "date_computation": _math("arithmetic", "Date Computation", "code"),
    "week_identification": _math("arithmetic", "Week Identification", "code (ISO week)"),
    "time_zone_conversion": _math("arithmetic", "Time Zone Conversion", "code"),
    "time_computation": _math("arithmetic", "Time Computation", "templates"),
    "arithmetic_application": _math("arithmetic", "Application", "templates"),
    "duration_computation": _math("duration", "Computation", "templates"),
    "duration_multistep_comparison": _math("duration", "Multi-Step Comparison", "templates"),
    "frequency_facts": _math("frequency", "Facts", "web pages"),
    "frequency_comparison": _math("frequency", "Comparison", "templates"),
    "frequency_computation": _math("frequency", "Computation", "templates"),
    "frequency_application": _math("frequency", "Application", "templates"),
    "ambiguity_interpretation": _pure("ambiguity_resolution", "Interpretation", "templates, idioms"),
    "causality_cause": _pure("causality", "Cause", "COPA", False),
    "causality_effect": _pure("causality", "Effect", "COPA", False),
    "duration_facts": _pure("duration", "Facts", "web pages"),
    "duration_commonsense": _pure("duration", "Commonsense", "MCTACO", False),
    "duration_direct_comparison": _pure("duration", "Direct Comparison", "templates"),
    "duration_reading": _pure("duration", "Reading", "SQuAD"),
    "duration_analogy": _pure("duration", "Analogy Inference", "templates"),
    "frequency_commonsense": _pure("frequency", "Commonsense", "MCTACO", False),
    "frequency_reading": _pure("frequency", "Reading", "SQuAD"),
    "temporal_nli": _pure("nli", None, "MNLI, SNLI"),
    "ordering_facts": _pure("ordering", "Facts", "Wikipedia"),
    "ordering_commonsense": _pure("ordering", "Commonsense", "MCTACO", False),
    "relation": _pure("relation", None, "TempEval-3"),
    "storytelling": _pure("storytelling", None, "ROCStories, Story Cloze", False),
    "typical_time_facts": _pure("typical_time", "Facts", "web pages"),
    "typical_time_commonsense": _pure("typical_time", "Commonsense", "MCTACO", False),
    "typical_time_reading": _pure("typical_time", "Reading", "SQuAD"),
    "typical_time_comparison": _pure("typical_time", "Comparison", "templates"),
}

GENERATED = tuple(name for name, task in TASKS.items() if task.generated)


def kind_of(task: str) -> Kind:
    """math-time or pure-time, for the 38 tasks and for the subtasks of other sets (timebench_..., mctaco_...)."""
    return TASKS[task].kind if task in TASKS else "pure-time"
