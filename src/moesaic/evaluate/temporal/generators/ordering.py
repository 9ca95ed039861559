"""Order of known events: in history and in the year; dates of yearly days."""

from moesaic.evaluate.temporal.draft import Draft, Redraw, Rng
from moesaic.evaluate.temporal.words import MONTHS, listed

# Years on which reference works agree.
HISTORY = {
    "the Battle of Hastings": 1066, "the sealing of Magna Carta": 1215, "the fall of Constantinople": 1453,
    "Columbus's first voyage across the Atlantic": 1492, "Luther's Ninety-five Theses": 1517, "the defeat of the Spanish Armada": 1588,
    "the voyage of the Mayflower": 1620, "the Peace of Westphalia": 1648, "the Great Fire of London": 1666,
    "the publication of Newton's Principia": 1687, "the Lisbon earthquake": 1755, "the American Declaration of Independence": 1776,
    "the storming of the Bastille": 1789, "the Battle of Trafalgar": 1805, "the Battle of Waterloo": 1815,
    "the coronation of Queen Victoria": 1838, "the publication of On the Origin of Species": 1859, "the opening of the Suez Canal": 1869,
    "the inauguration of the Eiffel Tower": 1889, "the first modern Olympic Games in Athens": 1896,
    "the first powered flight of the Wright brothers": 1903, "the sinking of the Titanic": 1912, "the opening of the Panama Canal": 1914,
    "the October Revolution in Russia": 1917, "the Treaty of Versailles": 1919, "the discovery of Tutankhamun's tomb": 1922,
    "Lindbergh's solo flight across the Atlantic": 1927, "the first football World Cup": 1930, "the Hindenburg disaster": 1937,
    "the Normandy landings": 1944, "the founding of the United Nations": 1945, "the independence of India": 1947,
    "the coronation of Queen Elizabeth II": 1953, "the launch of Sputnik 1": 1957, "Gagarin's flight into space": 1961,
    "the assassination of John F. Kennedy": 1963, "the first Moon landing": 1969, "the resignation of Richard Nixon": 1974,
    "the eruption of Mount St. Helens": 1980, "the Chernobyl disaster": 1986, "the fall of the Berlin Wall": 1989,
    "the reunification of Germany": 1990, "the dissolution of the Soviet Union": 1991,
    "the election of Nelson Mandela as president of South Africa": 1994, "the introduction of euro coins and notes": 2002,
    "the Indian Ocean tsunami": 2004, "the launch of the first iPhone": 2007, "the first image of a black hole": 2019,
}  # fmt: skip
# Observances with a fixed date; days of the United Nations are fixed by resolution.
YEARLY = {
    "New Year's Day": (1, 1), "Epiphany": (1, 6), "International Holocaust Remembrance Day": (1, 27), "Groundhog Day": (2, 2),
    "World Cancer Day": (2, 4), "Valentine's Day": (2, 14), "International Mother Language Day": (2, 21),
    "International Women's Day": (3, 8), "Pi Day": (3, 14), "Saint Patrick's Day": (3, 17), "World Water Day": (3, 22),
    "April Fools' Day": (4, 1), "World Health Day": (4, 7), "Earth Day": (4, 22), "Anzac Day": (4, 25), "Labour Day in most of Europe": (5, 1),
    "Star Wars Day": (5, 4), "Europe Day of the European Union": (5, 9), "World No Tobacco Day": (5, 31), "World Environment Day": (6, 5),
    "World Oceans Day": (6, 8), "World Blood Donor Day": (6, 14), "Canada Day": (7, 1), "Independence Day of the United States": (7, 4),
    "Bastille Day": (7, 14), "Nelson Mandela Day": (7, 18), "Swiss National Day": (8, 1), "Assumption Day": (8, 15),
    "International Literacy Day": (9, 8), "the International Day of Peace": (9, 21), "World Teachers' Day": (10, 5),
    "World Mental Health Day": (10, 10), "World Food Day": (10, 16), "United Nations Day": (10, 24), "Halloween": (10, 31),
    "All Saints' Day": (11, 1), "Guy Fawkes Night": (11, 5), "Armistice Day": (11, 11), "World AIDS Day": (12, 1), "Saint Nicholas Day": (12, 6),
    "Human Rights Day": (12, 10), "Christmas Day": (12, 25), "Boxing Day": (12, 26), "New Year's Eve": (12, 31),
}  # fmt: skip


def ordering_facts(rng: Rng) -> Draft:
    """Which of three came first or last; the wrong answers are the other two."""
    names = rng.sample(sorted(HISTORY), 3)
    first = rng.random() < 0.5
    answer = (min if first else max)(names, key=HISTORY.__getitem__)
    if names.index(answer) != rng.corner % 3:
        raise Redraw
    question = f"Which of these happened {'first' if first else 'last'}: {listed(names, 'or')}?"
    return Draft(question, answer, tuple(n for n in names if n != answer), f"history {sorted(names)}")


def typical_time_comparison(rng: Rng) -> Draft:
    """Which of three days comes first or last in the calendar year."""
    names = rng.sample(sorted(YEARLY), 3)
    first = rng.random() < 0.5
    answer = (min if first else max)(names, key=YEARLY.__getitem__)
    if names.index(answer) != rng.corner % 3:
        raise Redraw
    question = f"Counting from January 1, which of these days comes {'first' if first else 'last'} in the calendar year: {listed(names, 'or')}?"
    return Draft(question, answer, tuple(n for n in names if n != answer), f"yearly {sorted(names)}")


def typical_time_facts(rng: Rng) -> Draft:
    """The date of a yearly day. Mistakes: a month off; some days off."""
    name = rng.choice(sorted(YEARLY))
    month, day = YEARLY[name]
    (sign, other), slip = rng.signs(), rng.choice((1, 2, 5, 7))
    months, days = (month, (month - 1 + sign) % 12 + 1), (day, day + other * slip)
    if not 1 <= days[1] <= 28 and days[1] != day:
        raise Redraw
    if day > 28 and months[1] in (2, 4, 6, 9, 11):
        raise Redraw
    texts = [f"{MONTHS[m - 1]} {d}" for m in months for d in days]
    question = f"On which date of the year is {name}? Give month and day."
    return Draft(question, texts[0], tuple(texts[1:]), f"date of {name}")
