"""Nectar's rows: {prompt, answers}, several answers to one prompt, each {answer, rank}; 1 is the best rank.

A row becomes its best answer against its worst, as online pairs are made. Which pair the paper's offline baseline took
of the seven answers is not published.
"""

from scripts.lib.data.adapters import general
from scripts.lib.data.examples import Example, Unfit, number


def parse(row: object, kind: str) -> Example:
    """One row as an example of `kind`: prompts, conversations (of the best answer) or preferences.

    `margin` is the difference of the ranks. Raises Unfit for a row that is none.
    """
    if not isinstance(row, dict):
        raise Unfit("malformed")
    if kind == "prompts":
        return general.parse(row, kind)
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise Unfit("malformed")
    ranks = [number(answer.get("rank")) for answer in answers]
    known = [rank for rank in ranks if rank is not None]
    if not known or len(known) < len(ranks):
        raise Unfit("malformed")
    best, worst = min(known), max(known)
    if best == worst:
        raise Unfit("unranked")
    chosen, rejected = (answers[ranks.index(rank)].get("answer") for rank in (best, worst))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Unfit("malformed")
    pair = {"prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected, "margin": worst - best}
    return general.parse(pair, kind)
