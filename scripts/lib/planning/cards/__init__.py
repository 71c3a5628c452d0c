"""The cards of all stages, in the order in which a build needs them; found by the names of the files here."""

from importlib import import_module
from pathlib import Path

from scripts.lib.planning.card import Card
from scripts.lib.stage.errors import ConfigError

# Files in the order of the rules' includes; a new file is taken up at the end, in alphabetical order.
ORDER = ("data", "base", "sft", "reward", "rollouts", "pairs", "policy", "evaluation")


def _all() -> dict[str, Card]:
    """Stage → card, by the names `CARDS` of the files. Raises ValueError for two stages of one name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    cards: dict[str, Card] = {}
    for name in names:
        for card in import_module(f"{__name__}.{name}").CARDS:
            if card.name in cards:
                raise ValueError(f"card {card.name}: name is taken by another card.\nHint: a stage has one card.")
            cards[card.name] = card
    return cards


CARDS = _all()


def card(stage: str) -> Card:
    """The card of a stage. Raises ConfigError for a name that no card has."""
    if stage not in CARDS:
        raise ConfigError(f"card {stage}: there is none. Hint: the stages are {', '.join(CARDS)}.")
    return CARDS[stage]
