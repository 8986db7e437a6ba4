"""The task of `potstill demo`: a customer's message in, a ticket of four fields out.

    Hi, where is my jade desk fan? I ordered it a fortnight ago. It can't wait.
    track | jade desk fan | 2 weeks | urgent

The wording is hand-written (`skeletons.txt`): whole messages, and contexts and requests that make
a message together. Each of those belongs to one split only, and so does a whole item. A fifth of
the test items have a word that no training item has. Sentences of tone ("It's urgent.")
are shared by all splits. A row names its wording in `metadata`, since rows of one wording are not
independent.

Everything follows from the seed. No row comes from a real person, shop or dataset.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from potstill.errors import DataError

SYSTEM_PROMPT = "Write the ticket."
"""Short, because every row pays for it; without one the chat template inserts twenty tokens."""

INTENTS = ("refund", "cancel", "track", "invoice", "repair")
URGENCIES = ("normal", "urgent")
FIELDS = ("intent", "item", "time", "urgency")

SKELETON_SHARES = {"gold": 17, "pool": 20, "validation": 3, "test": 12}
"""How the skeletons of each intent are dealt out; in the proportion of these numbers."""

WHOLE_SHARE = 0.1
"""The share of messages written in one piece; the others join a context and a request."""

MODIFIERS = tuple(
    """
    amber antique apricot ash bamboo beige black blue brass bronze canvas ceramic charcoal
    cherry classic compact copper coral cork cotton cream crimson crystal curved deluxe ebony
    enamel felt folding foldable fern frosted gilded glass gold granite green grey hazel heavy
    hemp indigo iron ivory jade jumbo lacquered leather lemon linen lilac long magnetic
    mahogany maple marble maroon matte mini mint modern mustard navy nickel oak ochre olive
    orange oval padded pearl pine pink plaid plum portable purple quilted rattan red retro
    ribbed round royal ruby rustic sage salmon sandy scarlet silk silver slate slim small
    smoky spruce square steel striped suede tall tan teak teal tiny turquoise velvet vintage
    violet walnut white wicker wide willow wooden woollen yellow
    """.split()
)
NOUNS = tuple(
    " ".join(noun.split())
    for noun in """
    air pump, alarm clock, armchair, backpack, baking tin, basket, bath mat, bed frame, bench,
    bird feeder, blanket, blender, bookcase, bread bin, briefcase, broom, bucket, butter dish,
    cabinet, cake stand, camp stove, candle holder, card table, chess set, coat rack, coffee
    grinder, cooler, cradle, cushion, cutting board, desk fan, desk lamp, dish rack, dog bed,
    doormat, dresser, duvet, easel, egg timer, espresso machine, fire pit, fishing rod, flask,
    floor lamp, flower pot, footstool, fruit bowl, frying pan, garden hose, guitar stand, hair
    dryer, hammock, handbag, heater, helmet, ice bucket, ironing board, juicer, kettle, kite,
    knife block, ladder, lantern, laundry basket, lunch box, mailbox, mattress, microscope,
    mirror, mixer, music box, necklace, night light, nutcracker, ottoman, oven dish, parasol,
    pepper mill, phone case, photo frame, picnic rug, piggy bank, pizza stone, plant stand,
    radio, rice cooker, rocking chair, rug, saddle, salad bowl, scooter, serving tray, shoe
    rack, shower curtain, side table, sledge, sleeping bag, soap dish, soup pot, spice rack,
    stool, suitcase, teapot, telescope, tent, toaster, tool box, toy train, travel mug,
    tripod, trolley, umbrella, vase, wall clock, wallet, wardrobe, watering can, wheelbarrow,
    wind chime, wine rack, wok, yoga mat
    """.split(",")
)
NAMES = tuple(
    """Ada Ben Carla Dev Ella Finn Greta Hugo Ines Jonas Kira Liam Mona Nils Olga Paul Rosa Sam Tara
    Umar Vera Will Yara Zoe""".split()
)
GREETINGS = ("Hi,", "Hello,", "Hi there,", "Dear team,", "Good morning.", "Hey,", "Hello!", "Hi!")

_WORDS = "one two three four five six seven eight nine ten eleven twelve".split()
_SLOT = re.compile(r"\{(item|dur|num|name)\}")
_TICKET = re.compile(r"(\w+) \| ([^|\n]+) \| (\d+ (?:day|week|month)s?) \| (\w+)")


def durations() -> dict[str, str]:
    """What customers write for a time, and how a ticket writes it: number and unit."""
    found = {"a couple of days": "2 days", "a couple of weeks": "2 weeks", "a fortnight": "2 weeks"}
    for unit in ("week", "month"):
        found |= {f"a {unit}": f"1 {unit}", f"one {unit}": f"1 {unit}"}
    for unit, most in (("days", 12), ("weeks", 8), ("months", 6)):
        for number, word in enumerate(_WORDS[1:most], start=2):
            found[f"{word} {unit}"] = found[f"{number} {unit}"] = f"{number} {unit}"
    return found


def tickets(
    seed: int,
    *,
    num_gold: int = 480,
    num_few: int = 48,
    num_pool: int = 800,
    num_validation: int = 64,
    num_test: int = 320,
) -> dict[str, list[dict[str, Any]]]:
    """The demo's rows by split: gold, few, pool, validation, test.

    Args:
        seed: Decides everything: who gets which skeleton and item, slots, order.
        num_gold: Rows with a reference that the teacher is tuned on.
        num_few: How many of them a student without a teacher is trained on: the first ones.
        num_pool: Rows for the teacher to label. Their references are there so that its labels can
            be counted right or wrong; nothing trains on them unless it says so ("all gold").
        num_validation: Rows to choose settings on.
        num_test: Rows that nothing is chosen on.

    Returns:
        Rows of `id`, `messages`, `reference` and `metadata` (the four fields, `skeleton`). Every
        split goes round the intents in order, so that any first rows hold all intents. `few` is the
        beginning of `gold`; apart from that no two splits share a skeleton, an item or a message.

    Raises:
        DataError: If `num_few` is larger than `num_gold` or a split has too few skeletons.
    """
    if num_few > num_gold:
        raise DataError(
            "num_few must be <= num_gold, since the few rows are some of them; "
            f"got {num_few} and {num_gold}"
        )
    rng = random.Random(f"potstill tickets {seed}")
    wording = _deal_wording(rng)
    items = _deal_items(rng)
    sizes = {"gold": num_gold, "pool": num_pool, "validation": num_validation, "test": num_test}
    rows = {
        split: _rows(rng, split, size, wording[split], items[split])
        for split, size in sizes.items()
    }
    _check_disjoint(rows)
    return {"gold": rows["gold"], "few": rows["gold"][:num_few]} | {
        split: rows[split] for split in ("pool", "validation", "test")
    }


def format_ticket(fields: dict[str, Any]) -> str:
    """The ticket as it is written: `track | jade desk fan | 2 weeks | urgent`."""
    return " | ".join(fields[name] for name in FIELDS)


def parse_ticket(text: str) -> dict[str, Any] | None:
    """The four fields of a ticket, or None if the text is not one. Never raises.

    Outer space is ignored. An intent or urgency outside the lists is not a ticket.
    """
    match = _TICKET.fullmatch(text.strip())
    if match is None or match[1] not in INTENTS or match[4] not in URGENCIES:
        return None
    return dict(zip(FIELDS, (match[1], match[2].strip(), match[3], match[4]), strict=True))


def field_accuracy(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of texts right in each field, in [0, 1]; `all` is right in every field.

    A text that does not parse is wrong in every field.

    Raises:
        DataError: If the two have different lengths, are empty, or a reference is not a ticket.
    """
    if len(texts) != len(references) or not texts:
        raise DataError(
            "need as many texts as references and at least one, "
            f"got {len(texts)} and {len(references)}"
        )
    right = dict.fromkeys((*FIELDS, "all"), 0)
    for text, reference in zip(texts, references, strict=True):
        expected = parse_ticket(reference)
        if expected is None:
            raise DataError(f"the reference {reference!r} is not a ticket")
        found = parse_ticket(text) or {}
        for field in FIELDS:
            right[field] += found.get(field) == expected[field]
        right["all"] += found == expected
    return {name: count / len(texts) for name, count in right.items()}


def read_skeletons() -> dict[str, list[str]]:
    """The hand-written file by key: whole messages under their intent, and sentences to combine.

    Raises:
        DataError: If a line has an unknown key, or a message lacks its two slots.
    """
    source = resources.files("potstill.demo").joinpath("skeletons.txt").read_text(encoding="utf-8")
    sentences = (f"{name}+" for name in (*INTENTS, *URGENCIES))
    found: dict[str, list[str]] = {key: [] for key in (*INTENTS, "context", *sentences)}
    for number, line in enumerate(source.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        key, _, text = line.partition(": ")
        if key not in found:
            raise DataError(
                f"skeletons.txt:{number}: unknown key {key!r}; it has: {', '.join(found)}"
            )
        wanted = (0, 0) if key.endswith("+") else (1, 1)
        if (text.count("{item}"), text.count("{dur}")) != wanted:
            raise DataError(
                f"skeletons.txt:{number}: a message or context has {{item}} and {{dur}} once each, "
                "a sentence with + neither"
            )
        found[key].append(text)
    return found


def _deal_wording(rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Split -> key of the file -> its texts. Each is in one split, but tones are in all."""
    dealt: dict[str, dict[str, list[str]]] = {split: {} for split in SKELETON_SHARES}
    tones = {f"{urgency}+" for urgency in URGENCIES}
    for key, lines in read_skeletons().items():
        texts = rng.sample(lines, len(lines))
        parts = _cut(texts, list(SKELETON_SHARES.values()))
        for split, part in zip(dealt, parts, strict=True):
            dealt[split][key] = texts if key in tones else part
    return dealt


def _deal_items(rng: random.Random) -> dict[str, list[str]]:
    """Split -> items, each in one; a quarter of the words is only in validation and test."""
    modifiers = rng.sample(MODIFIERS, len(MODIFIERS))
    nouns = rng.sample(NOUNS, len(NOUNS))
    known_modifiers = modifiers[len(modifiers) // 4 :]
    known_nouns = nouns[len(nouns) // 4 :]
    known = {f"{modifier} {noun}" for modifier in known_modifiers for noun in known_nouns}
    every = [f"{modifier} {noun}" for modifier in modifiers for noun in nouns]
    rng.shuffle(every)
    gold, pool, held = _cut(every, [1, 3, 2])
    # An item with a new word can't be trained on; one without may still be kept for the test.
    held += [item for item in gold + pool if item not in known]
    validation, test = _cut(held, [1, 4])
    return {
        "gold": [item for item in gold if item in known],
        "pool": [item for item in pool if item in known],
        "validation": validation,
        "test": _mixed(test, known),
    }


def _mixed(items: list[str], known: set[str]) -> list[str]:
    """Four items of known words for each one with a new word."""
    old = [item for item in items if item in known]
    new = [item for item in items if item not in known]
    count = min(len(old) // 4, len(new))
    return old[: 4 * count] + new[:count]


def _rows(
    rng: random.Random, split: str, size: int, wording: dict[str, list[str]], items: list[str]
) -> list[dict[str, Any]]:
    """Rows that go round the intents, and within an intent round its wordings."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    times = durations()
    days = [time for time in times if time.endswith("days")]
    longer = [time for time in times if not time.endswith("days")]
    while len(rows) < size:
        intent = INTENTS[len(rows) % len(INTENTS)]
        turn = len(rows) // len(INTENTS)
        is_whole = rng.random() < WHOLE_SHARE
        texts = wording[intent] if is_whole else wording[f"{intent}+"]
        skeleton = texts[turn % len(texts)]
        context = None if is_whole else rng.choice(wording["context"])
        time = rng.choice(days if rng.random() < 0.5 else longer)
        urgency = rng.choice(URGENCIES)
        fields = {
            "intent": intent,
            "item": rng.choice(items),
            "time": times[time],
            "urgency": urgency,
        }
        has_tone = urgency == "urgent" or rng.random() < 0.6
        tone = rng.choice(wording[f"{urgency}+"]) if has_tone else None
        text = skeleton if context is None else _combined(rng, context, skeleton)
        message = _message(rng, text, fields["item"], time, tone)
        if message in seen:
            continue
        seen.add(message)
        rows.append(
            {
                "id": f"{split}-{len(rows):04d}",
                "messages": [
                    {"role": "system", "content": SYSTEM_PROMPT},
                    {"role": "user", "content": message},
                ],
                "reference": format_ticket(fields),
                "metadata": {**fields, "skeleton": skeleton, "context": context},
            }
        )
    return rows


def _combined(rng: random.Random, context: str, request: str) -> str:
    """A context and a request in either order, as one message."""
    first, second = (request, context) if rng.random() < 0.35 else (context, request)
    return f"{_ended(first)} {second}"


def _ended(text: str) -> str:
    """The text with a mark at its end that something may follow."""
    return text if text.endswith((".", "!", "?", ":")) else text + "."


def _message(rng: random.Random, skeleton: str, item: str, time: str, tone: str | None) -> str:
    """One customer's message: skeleton, tone before or after, greeting, and a careless hand."""
    text = _misspell(rng, skeleton) if rng.random() < 0.06 else skeleton
    if tone is not None:
        is_first = rng.random() < 0.3 and "{name}" not in tone
        text = f"{_ended(tone)} {text}" if is_first else f"{_ended(text)} {tone}"
    if rng.random() < 0.15 and not text.startswith(("Hi", "Hello", "hi ", "hello", "Dear")):
        text = f"{rng.choice(GREETINGS)} {text}"
    slots = {"item": item, "dur": time, "num": str(rng.choice((2, 3, 4, 5, 6, 8, 15, 20, 25, 40)))}
    slots["name"] = rng.choice(NAMES)
    if text.startswith("{dur}"):
        slots["dur"] = time[0].upper() + time[1:]
    text = _SLOT.sub(lambda match: slots[match[1]], text)
    return text.lower() if rng.random() < 0.15 else text


def _misspell(rng: random.Random, skeleton: str) -> str:
    """Two neighbouring letters swapped inside one long word that is not a slot."""
    words = skeleton.split(" ")
    long = [place for place, word in enumerate(words) if word.isalpha() and len(word) > 4]
    if not long:
        return skeleton
    place = rng.choice(long)
    word = words[place]
    at = rng.randrange(1, len(word) - 2)
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _cut(texts: list[str], shares: list[int]) -> list[list[str]]:
    """Consecutive pieces in the proportion of the shares; nothing is lost."""
    ends = [len(texts) * sum(shares[: end + 1]) // sum(shares) for end in range(len(shares))]
    pieces = [texts[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if not all(pieces):
        raise DataError(f"{len(texts)} texts are too few to be dealt out as {shares}")
    return pieces


def _check_disjoint(rows: dict[str, list[dict[str, Any]]]) -> None:
    """No skeleton, context, item or message of one split is in another."""
    for key in ("skeleton", "context", "item", "message"):
        seen: dict[str, str] = {}
        for split, members in rows.items():
            for row in members:
                value = row["messages"][-1]["content"] if key == "message" else row["metadata"][key]
                if value is not None:
                    assert seen.setdefault(value, split) == split, (key, value, split, seen[value])
