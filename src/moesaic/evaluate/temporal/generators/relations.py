"""Relations between intervals (Allen, 1983) and what follows from a sentence about time."""

from itertools import permutations

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng
from moesaic.evaluate.temporal.words import DAY, EVENTS, clock24, duration

INVERSE = {
    "before": "after",
    "immediately before": "immediately after",
    "overlaps the start of": "overlaps the end of",
    "begins together with but ends before": "begins together with but ends after",
    "happens during": "contains",
    "ends together with but begins after": "ends together with but begins before",
}
"""Allen's relations in words, each with its inverse; `equal` is its own inverse and is not asked."""
RELATIONS = (*INVERSE, *INVERSE.values())
BESIDE = {
    ("before", "overlaps the start of"): 2,
    ("before", "happens during"): 2,
    ("before", "begins together with but ends before"): 1,
    ("before", "ends together with but begins after"): 1,
    ("immediately before", "overlaps the start of"): 2,
    ("immediately before", "happens during"): 2,
    ("immediately before", "begins together with but ends before"): 1,
    ("immediately before", "ends together with but begins after"): 1,
    ("overlaps the start of", "happens during"): 2,
    ("begins together with but ends before", "ends together with but begins after"): 4,
}
"""How often (of 6) two pairs of inverses, each named by its first, are the choices when either holds the answer. Pairs of which one relation
is a case of another (what ends immediately before ends before) are never; each pair adds up to 6, so that neither is the likelier answer."""
LABELS = ("entailment", "neutral", "contradiction")


def allen(first: tuple[int, int], second: tuple[int, int]) -> str:
    """The relation of the first interval to the second. Raises Redraw for equal intervals."""
    (a, b), (c, d) = first, second
    if first == second:
        raise Redraw
    if b < c:
        return "before"
    if b == c:
        return "immediately before"
    if a == c:
        return "begins together with but ends before" if b < d else "begins together with but ends after"
    if b == d:
        return "ends together with but begins after" if a > c else "ends together with but begins before"
    if c < a and b < d:
        return "happens during"
    if a < c and d < b:
        return "contains"
    if a < c < b < d:
        return "overlaps the start of"
    if c < a < d:
        return "overlaps the end of"
    return "immediately after" if a == d else "after"


def relation(rng: Rng) -> Draft:
    """Two events with their times. The wrong answers are the inverse (the direction confused) and another pair of inverses,
    neither of them true as well."""
    wanted = RELATIONS[rng.corner]
    times = sorted(5 * t for t in rng.sample(range(72, 264), 4))
    pick = rng.choice(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))
    other = rng.choice(((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)))
    first, second = (times[pick[0]], times[pick[1]]), (times[other[0]], times[other[1]])
    if allen(first, second) != wanted:
        raise Redraw
    one, two = rng.sample(EVENTS, 2)
    told = [
        f"The {one} lasts from {clock24(first[0])} to {clock24(first[1])}.",
        f"The {two} lasts from {clock24(second[0])} to {clock24(second[1])}.",
    ]
    rng.shuffle(told)
    question = f"{' '.join(told)} How is the {one} related to the {two}? The {one} ... the {two}. Say the most exact one of: {', '.join(RELATIONS)}."
    both = {**INVERSE, **{value: key for key, value in INVERSE.items()}}
    own = wanted if wanted in INVERSE else both[wanted]
    others = {name: share for pair, share in BESIDE.items() if own in pair for name in pair if name != own}
    other_pair = rng.choices(list(others), list(others.values()))[0]
    return Draft(question, wanted, (both[wanted], other_pair, INVERSE[other_pair]), f"allen {first} {second}")


def temporal_nli(rng: Rng) -> Draft:
    """Does the hypothesis follow from the premise? The same hypotheses stand under all three labels, so it alone tells nothing."""
    premise, hypothesis, label, key = rng.choice((_order, _bounds))(rng)
    if label != LABELS[rng.corner % 3]:
        raise Redraw
    question = (
        f"Premise: {premise} Hypothesis: {hypothesis} Is the hypothesis an entailment of the premise (it must be true), a contradiction (it cannot "
        "be true) or neutral (it may be true)? Answer with entailment, contradiction or neutral."
    )
    return Draft(question, label, tuple(item for item in LABELS if item != label), key)


def _order(rng: Rng) -> tuple[str, str, str, str]:
    """Two facts about the order of three events; what they say about a third pair, over all orders that they allow."""
    names = rng.sample(EVENTS, 3)
    pairs = [(0, 1), (1, 2)]
    facts = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
    rng.shuffle(facts)
    asked = rng.choice(((0, 2), (2, 0)))
    found = {
        order.index(asked[0]) < order.index(asked[1])
        for order in permutations(range(3))
        if all(order.index(a) < order.index(b) for a, b in facts)
    }
    label = "neutral" if len(found) == 2 else "entailment" if found == {True} else "contradiction"
    told = [
        f"The {names[a]} took place before the {names[b]}."
        if rng.random() < 0.5
        else f"The {names[b]} took place after the {names[a]}."
        for a, b in facts
    ]
    # Named, not numbered: whichever fact is told first, and whichever event was drawn first, it is one problem.
    known = sorted((names[a], names[b]) for a, b in facts)
    return (
        " ".join(told),
        f"The {names[asked[0]]} took place before the {names[asked[1]]}.",
        label,
        f"order {known} {names[asked[0]]}, {names[asked[1]]}",
    )


def _bounds(rng: Rng) -> tuple[str, str, str, str]:
    """More or less than so long; or a time of day within or outside of opening hours."""
    event = rng.choice(EVENTS)
    known, asked = 5 * rng.randrange(4, 60), 5 * rng.randrange(4, 60)
    if known == asked:
        raise Redraw
    more, claim = rng.random() < 0.5, rng.random() < 0.5
    low, high = (known, DAY) if more else (0, known)
    inside = (asked, DAY) if claim else (0, asked)
    if inside[0] <= low and high <= inside[1]:
        label = "entailment"
    elif max(low, inside[0]) >= min(high, inside[1]):
        label = "contradiction"
    else:
        label = "neutral"
    words = {True: "more than", False: "less than"}
    premise = f"The {event} lasted {words[more]} {duration(known)}."
    hypothesis = f"The {event} lasted {words[claim]} {duration(asked)}."
    return premise, hypothesis, label, f"bounds {known} {more} {asked} {claim}"
