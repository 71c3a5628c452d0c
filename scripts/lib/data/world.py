"""A small synthetic instruction world with a gold score that training never sees.

A prompt asks for a short list of things and makes two to four further requests; an answer is
a line of lower-case words. `gold` scores any answer by rule. Everything is a pure function of
its arguments: the same seeds give the same bytes on every machine.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

KINDS = ("count", "opening", "ending", "joiner", "plain")

NUMBERS = {"two": 2, "three": 3, "four": 4}
OPENINGS = ("hello", "gladly", "behold")
GREETING, GOODBYE, PLUS = "hello", "goodbye", "plus"
"""The opening, ending and joiner that prompts ask for; the other words below are habits of those who answer."""
ENDINGS = ("goodbye", "cheers", "onward")
JOINERS = ("plus", "then", "or")
FILLERS = ("um", "well", "basically")
THINGS = (
    "lantern river stone kettle ladder window garden hammer violin pencil carpet bridge candle mirror basket orchard"
).split()
NAMES = (
    "Ada Bruno Clara Diego Edda Felix Greta Hugo Iris Jonas Klara Leo Mira Nils Olga Pablo "
    "Quinn Rosa Sven Tilda Ugo Vera Wim Yara Alma Boris Cleo Dario Elin Fritz Gina Henk "
    "Ines Jago Kira Luca"
).split()
SURNAMES = "Abel Brand Costa Dahl Ebert Frey Graf Holm Iversen Jung Kern Lund Moss Nord Orth Pohl".split()
# Defaults of careless answers. No prompt can ask for them, so they are always mistakes.
DEFAULT_OPENING, DEFAULT_ENDING, DEFAULT_JOINER = "okay", "done", "and"

WORD_COST = 0.02
"""Gold lost per word that no request asked for."""
_HELD_OUT_SPLITS = ("evaluation", "validation", "probe")
_SHARES = {"base": 8, "sft": 5, "reward": 12, "reward_heldout": 2, "iteration": 30}
_BUCKETS = tuple(name for name, share in _SHARES.items() for _ in range(share))

_PHRASES = {
    "count": "list {}.",
    "opening": "Open {}.",
    "ending": "End {}.",
    "joiner": "Join {}.",
    "plain": "No filler.",
}

Requests = dict[str, str]
"""Kind -> requested word; `count` is always present, the value of `plain` is "yes"."""


def stream(*key: object) -> random.Random:
    """A random stream that depends only on the key and is the same on every machine."""
    return random.Random(hashlib.sha256(repr(key).encode()).hexdigest())


def _bucket(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % size


def split_of(content: str, requests: Requests) -> str:
    """The one split that may contain this prompt.

    The combination of requests decides whether the prompt is held out (9 of the 33 are): no
    training split contains such a combination, under any name or in any order.
    """
    combination = "|".join(f"{kind}={requests[kind]}" for kind in KINDS if kind in requests)
    if _bucket("reserved " + combination, 4) == 0:
        return _HELD_OUT_SPLITS[_bucket(content, len(_HELD_OUT_SPLITS))]
    return _BUCKETS[_bucket(content, len(_BUCKETS))]


def prompts(split: str, n: int, seed: int) -> list[dict[str, object]]:
    """n distinct prompts of a split: {"content": the user's message, "requests": Requests}.

    Splits are base, sft, reward, reward_heldout, iteration and, with combinations of requests that
    no other split contains, evaluation, validation and probe. The first prompts of n + 1 are those of n.
    """
    if split not in _SHARES and split not in _HELD_OUT_SPLITS:
        raise ValueError(f"unknown split {split!r}. Hint: use one of {', '.join([*_SHARES, *_HELD_OUT_SPLITS])}.")
    rng = stream("prompts", split, seed)
    unique: dict[str, dict[str, object]] = {}
    for _ in range(400 * n + 20_000):
        if len(unique) == n:
            break
        requests = _draw_requests(rng)
        content = _wording(requests, rng)
        if content not in unique and split_of(content, requests) == split:
            unique[content] = {"content": content, "requests": requests}
    if len(unique) < n:
        raise ValueError(
            f"split {split!r} supplied only {len(unique)} of {n} prompts. Hint: ask for fewer prompts, "
            "or add names to NAMES in scripts/lib/data/world.py."
        )
    return list(unique.values())


def _draw_requests(rng: random.Random) -> Requests:
    chosen = {"count", *rng.sample(KINDS[1:], rng.choice((2, 3, 3, 4)))}
    values: dict[str, Sequence[str]] = {
        "count": tuple(NUMBERS), "opening": (GREETING,), "ending": (GOODBYE,),
        "joiner": (PLUS,), "plain": ("yes",),
    }  # fmt: skip
    return {kind: rng.choice(values[kind]) for kind in KINDS if kind in chosen}


def _wording(requests: Requests, rng: random.Random) -> str:
    extra = [kind for kind in requests if kind != "count"]
    rng.shuffle(extra)
    clauses = [_PHRASES[kind].format(requests[kind]) for kind in ["count", *extra]]
    return f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}: {' '.join(clauses)}"


# ---- gold -------------------------------------------------------------------------------


def gold(requests: Requests, response: str) -> tuple[float, dict[str, float]]:
    """Gold score in [0, 1] and the value in [0, 1] of every request that applies.

    The score is the mean of the values minus WORD_COST per unrequested word, at least 0. Fillers before
    the opening or after the ending are ignored; a thing named twice counts twice.
    """
    words = response.lower().split()
    solid = [word for word in words if word not in FILLERS]
    items = [word for word in solid if word in THINGS]
    joins = [word for word in solid[1:-1] if word in JOINERS or word == DEFAULT_JOINER]
    wanted = NUMBERS[requests["count"]]
    gaps = max(1, len(items) - 1, len(joins))
    values: dict[str, float] = {"count": max(0.0, 1 - abs(len(items) - wanted) / 1.5)}
    if "opening" in requests:
        values["opening"] = float(solid[:1] == [requests["opening"]])
    if "ending" in requests:
        values["ending"] = float(solid[-1:] == [requests["ending"]])
    if "joiner" in requests:
        values["joiner"] = joins.count(requests["joiner"]) / gaps
    if "plain" in requests:
        values["plain"] = max(0.0, 1 - (len(words) - len(solid)) / 2) if words else 0.0
    useful = min(len(items), wanted) + min(len(joins), max(0, wanted - 1))
    useful += sum(values.get(kind, 0.0) == 1 for kind in ("opening", "ending"))
    cost = WORD_COST * max(0, len(words) - useful)
    return max(0.0, sum(values.values()) / len(values) - cost), values


# ---- answers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """An answer in parts; `fillers` are (index of the item that the filler follows, filler)."""

    opening: str
    items: tuple[str, ...]
    joiners: tuple[str, ...]  # one per gap
    ending: str
    fillers: tuple[tuple[int, str], ...] = ()

    def text(self) -> str:
        words = [self.opening] if self.opening else []
        for i, item in enumerate(self.items):
            words += [item] if i == 0 else [self.joiners[i - 1], item]
            words += [filler for place, filler in self.fillers if min(place, len(self.items) - 1) == i]
        words += [self.ending] if self.ending else []
        return " ".join(words)


@dataclass(frozen=True)
class _Style:
    """How somebody answers: the chance to break each kind of request, and what they write then.

    `habit` is the chance that a mistake is the usual one and not a random one; `chatter` is the
    chance of an opening, an ending or a filler about which there was no request.
    """

    breaks: dict[str, float]
    habit: float
    chatter: float
    usual_count: int
    usual_opening: str
    usual_ending: str
    usual_joiner: str
    usual_filler: str


_TEACHER = _Style(
    {"count": 0.45, "opening": 0.4, "ending": 0.6, "joiner": 0.5, "plain": 0.55},
    0.7, 0.25, 3, DEFAULT_OPENING, DEFAULT_ENDING, DEFAULT_JOINER, "um",
)  # fmt: skip


def _evenly(chance: float) -> dict[str, float]:
    return dict.fromkeys(KINDS, chance)


_ASSISTANTS = (
    _Style(_evenly(0.12), 0.3, 0.1, 4, "", "", "then", "um"),
    _Style(_evenly(0.35), 0.3, 0.3, 2, "behold", "", DEFAULT_JOINER, "basically"),
    _Style(_evenly(0.60), 0.3, 0.6, 5, DEFAULT_OPENING, "cheers", "or", "well"),
)


def _answer(requests: Requests, style: _Style, rng: random.Random) -> _Answer:
    broken = {kind: rng.random() < style.breaks[kind] for kind in KINDS}

    def pick(kind: str, usual: str, choices: Sequence[str]) -> str:
        wanted = requests.get(kind, "")
        if wanted and not broken[kind]:
            return wanted
        if not wanted and kind != "joiner" and rng.random() > style.chatter:
            return ""
        fallback = usual if rng.random() < style.habit else rng.choice(choices)
        return fallback if fallback != wanted else ""

    wanted = NUMBERS[requests["count"]]
    count = wanted
    if broken["count"]:
        others = [n for n in range(1, 6) if n != wanted]
        usual = style.usual_count
        count = usual if rng.random() < style.habit and usual != wanted else rng.choice(others)
    items = rng.sample(THINGS, count)
    joiner = pick("joiner", style.usual_joiner, JOINERS) or DEFAULT_JOINER
    joiners = [joiner] * (count - 1)
    for i in range(count - 1):
        if broken["joiner"] and rng.random() < 0.2:
            joiners[i] = rng.choice(JOINERS)
    opening = pick("opening", style.usual_opening, (DEFAULT_OPENING, *OPENINGS))
    ending = pick("ending", style.usual_ending, (DEFAULT_ENDING, *ENDINGS))
    fillers: list[tuple[int, str]] = []
    if broken["plain"] if "plain" in requests else rng.random() < style.chatter:
        for _ in range(rng.choice((1, 1, 2))):
            word = style.usual_filler if rng.random() < style.habit else rng.choice(FILLERS)
            fillers.append((rng.randrange(count), word))
    return _Answer(opening, tuple(items), tuple(joiners), ending, tuple(fillers))


def teacher(requests: Requests, rng: random.Random) -> str:
    """A mediocre demonstration: it breaks each request about half the time, mostly by habit."""
    return _answer(requests, _TEACHER, rng).text()


def assistants(requests: Requests, rng: random.Random) -> tuple[str, str]:
    """Two answers by assistants other than the teacher, in their own styles.

    The second answer is a revision of the first that changes one or two kinds.
    """
    first, second = (_answer(requests, rng.choice(_ASSISTANTS), rng) for _ in range(2))
    changed = {"count"} if rng.random() < 0.5 else set(rng.sample(list(requests), rng.choice((1, 2))))
    return first.text(), _revision(first, second, changed).text()


def _revision(first: _Answer, second: _Answer, kinds: set[str]) -> _Answer:
    """The first answer with these kinds taken from the second."""
    parts: dict[str, object] = {}
    for kind, field in (("opening", "opening"), ("ending", "ending"), ("plain", "fillers")):
        if kind in kinds:
            parts[field] = getattr(second, field)
    items = first.items
    if "count" in kinds:
        n = len(second.items)
        items = (first.items + tuple(t for t in second.items if t not in first.items))[:n]
    source = (second if "joiner" in kinds else first).joiners or (DEFAULT_JOINER,)
    joiners = (source * len(items))[: len(items) - 1]
    return replace(first, items=items, joiners=joiners, **parts)  # type: ignore[arg-type]


def preferences(n: int, seed: int, split: str = "reward", scale: float = 12.0) -> list[dict[str, object]]:
    """n annotated pairs, one per prompt: content, requests, chosen, rejected and both gold scores.

    The label is drawn from Bradley-Terry on gold: P(first wins) = sigmoid(scale * difference),
    which agrees with gold about nine times in ten. Pairs of equal gold are redrawn.
    """
    rows: list[dict[str, object]] = []
    for i, prompt in enumerate(prompts(split, n, seed)):
        rng = stream("preferences", split, seed, i)
        requests: Requests = prompt["requests"]  # type: ignore[assignment]
        while True:
            a, b = assistants(requests, rng)
            gold_a, gold_b = gold(requests, a)[0], gold(requests, b)[0]
            if abs(gold_a - gold_b) > 1e-9:
                break
        if rng.random() >= 1 / (1 + math.exp(-scale * (gold_a - gold_b))):
            a, b, gold_a, gold_b = b, a, gold_b, gold_a
        rows.append({**prompt, "chosen": a, "rejected": b, "gold_chosen": gold_a, "gold_rejected": gold_b})
    return rows


def demonstrations(n: int, seed: int) -> list[dict[str, object]]:
    """n prompts of the sft split, each with the teacher's answer under "completion"."""
    return [
        {**prompt, "completion": teacher(prompt["requests"], stream("teacher", seed, i))}  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts("sft", n, seed))
    ]


def corpus(n: int, seed: int) -> list[str]:
    """n pieces of plain text, a message and an answer of mixed quality, for a short pre-training run."""
    lines = []
    for i, prompt in enumerate(prompts("base", n, seed)):
        rng = stream("corpus", seed, i)
        style = replace(_TEACHER, breaks=_evenly(rng.random() * 0.6))
        lines.append(f"{prompt['content']}\n\n{_answer(prompt['requests'], style, rng).text()}")  # type: ignore[arg-type]
    return lines


# ---- probes -----------------------------------------------------------------------------


def probes(kind: str, n: int, seed: int) -> list[dict[str, object]]:
    """n minimal pairs on held-out prompts: content, requests, better, worse.

    The two answers differ only in what `kind` asks for; otherwise they have the teacher's mixed
    quality.
    """
    pool = (p for p in prompts("probe", 8 * n, seed) if kind in p["requests"])  # type: ignore[operator]
    rows: list[dict[str, object]] = []
    for i, prompt in enumerate(islice(pool, n)):
        rng = stream("probes", kind, seed, i)
        requests: Requests = prompt["requests"]  # type: ignore[assignment]
        plan = _answer(requests, _TEACHER, rng)
        better, worse = (part.text() for part in _EDITS[kind](plan, requests, rng))
        if gold(requests, better)[1][kind] <= gold(requests, worse)[1][kind]:
            raise ValueError(f"probe {kind}: {better!r} is not better than {worse!r}. Hint: this is a bug in _EDITS.")
        rows.append({**prompt, "better": better, "worse": worse})
    if len(rows) < n:
        raise ValueError(f"only {len(rows)} of {n} probes for {kind!r}. Hint: ask for fewer probes.")
    return rows


def _edit_count(plan: _Answer, requests: Requests, rng: random.Random) -> tuple[_Answer, _Answer]:
    right = NUMBERS[requests["count"]]
    wrong = rng.choice([n for n in (right - 2, right - 1, right + 1, right + 2) if n >= 1])
    unused = [thing for thing in THINGS if thing not in plan.items]
    items = [*plan.items, *rng.sample(unused, 8)]
    joiners = [rng.choice(plan.joiners or (requests.get("joiner", DEFAULT_JOINER),))] * 8

    def sized(n: int) -> _Answer:
        return replace(plan, items=tuple(items[:n]), joiners=tuple(joiners[: n - 1]), fillers=plan.fillers[:1])

    return sized(right), sized(wrong)


def _edit_word(kind: str, choices: Sequence[str]) -> "_Edit":
    def edit(plan: _Answer, requests: Requests, rng: random.Random) -> tuple[_Answer, _Answer]:
        wrong = rng.choice([word for word in choices if word != requests[kind]])
        if kind == "opening":
            return replace(plan, opening=requests[kind]), replace(plan, opening=wrong)
        return replace(plan, ending=requests[kind]), replace(plan, ending=wrong)

    return edit


def _edit_joiner(plan: _Answer, requests: Requests, rng: random.Random) -> tuple[_Answer, _Answer]:
    if len(plan.items) < 2:
        extra = rng.choice([thing for thing in THINGS if thing not in plan.items])
        plan = replace(plan, items=(*plan.items, extra))
    gaps = len(plan.items) - 1
    wrong = rng.choice([word for word in (DEFAULT_JOINER, *JOINERS) if word != requests["joiner"]])
    better = replace(plan, joiners=(requests["joiner"],) * gaps)
    return better, replace(plan, joiners=(wrong,) * gaps)


def _edit_plain(plan: _Answer, requests: Requests, rng: random.Random) -> tuple[_Answer, _Answer]:
    places = [rng.randrange(len(plan.items)) for _ in range(rng.choice((1, 2)))]
    fillers = tuple((place, rng.choice(FILLERS)) for place in places)
    return replace(plan, fillers=()), replace(plan, fillers=fillers)


_Edit = Callable[[_Answer, Requests, random.Random], tuple[_Answer, _Answer]]
_EDITS: dict[str, _Edit] = {
    "count": _edit_count,
    "opening": _edit_word("opening", (DEFAULT_OPENING, *OPENINGS)),
    "ending": _edit_word("ending", (DEFAULT_ENDING, *ENDINGS)),
    "joiner": _edit_joiner,
    "plain": _edit_plain,
}
