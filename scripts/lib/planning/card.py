"""A stage's card: all that the plan knows of a stage, declared once.

Rule inputs, closure, maker, GPU requests, audit, prune, lineage and forecast are derived from the cards; each of
scripts/lib/planning/cards/*.py declares those of one rules/*.smk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from scripts.lib.kinds.bases import Shape
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.trainer import Trainer
from scripts.lib.planning import paths
from scripts.lib.planning.runs import Runs

Wildcards = Mapping[str, str]
Inputs = dict[str, str | list[str]]


@dataclass(frozen=True)
class Compute:
    """What a stage computes on a device, as the forecast takes it.

    `kind` says what it does there: trains, scores or samples. `model` names the model that it works on: base/NAME,
    sft/NAME or runs/NAME/iterN. `longest` is the longest sequence that it may meet, in tokens; `tokens` are those of
    the whole job at the expected lengths, None if unknown. A stage that trains has the settings of its `trainer`, and
    `sides` sequences in a row. `spreads` says whether it can train in several processes.
    """

    kind: Literal["train", "score", "sample"]
    model: Callable[[Runs, Wildcards], str]
    longest: Callable[[Runs, Wildcards], int]
    tokens: Callable[[Runs, Wildcards], float | None]
    trainer: Callable[[Runs, Wildcards], Trainer] | None = None
    trainer_key: Callable[[Wildcards], str] = lambda wildcards: ""
    sides: int = 1
    spreads: bool = False
    scalar_head: bool = False
    gated: Callable[[Runs, Wildcards], bool] = lambda plan, wildcards: False


@dataclass(frozen=True)
class Card:
    """One stage: its script and its rule have this name.

    `output` is the artifact's path beneath the results, with {wildcards} of the grammar; without a suffix it is a
    folder. `inputs` gives the paths that the script reads by role, in the order of its command line; a folder comes
    with its digests, which the rule depends on. `sources` are local files from outside. `settings` are what decides
    the result. `makes` names the values of wildcards that are this stage's, where several stages write such a path.
    `compute` is None for a stage without a device; a `local` one runs where Snakemake does. `shape` is what the
    configuration says of the model that a stage takes in.
    """

    name: str
    output: str
    settings: Callable[[Runs, Wildcards], Block]
    inputs: Callable[[Runs, Wildcards], Inputs] = lambda plan, wildcards: {}
    sources: Callable[[Runs, Wildcards], list[str]] | None = None
    makes: Callable[[Config], dict[str, list[str]]] = lambda config: {}
    compute: Compute | None = None
    local: bool = False
    first: bool = False  # the next iteration waits for it, an evaluation waits for nobody
    shape: Callable[[Runs, Wildcards], Shape | None] | None = None

    def __post_init__(self) -> None:
        """Refuse a card that the plan could not use, naming the card and the field."""
        if unknown := [name for name in paths.fields(self.output) if name not in paths.WILDCARDS]:
            raise ValueError(
                f"card {self.name}: output has {unknown}, which the grammar lacks.\n"
                f"Hint: add it to WILDCARDS in scripts/lib/planning/paths.py, or use {', '.join(paths.WILDCARDS)}."
            )
        if self.compute and self.compute.kind == "train" and self.compute.trainer is None:
            raise ValueError(f"card {self.name}: compute trains without a `trainer`.\nHint: name its settings block.")
        if self.compute and self.compute.spreads and self.compute.kind != "train":
            raise ValueError(f"card {self.name}: compute.spreads is for stages that train.\nHint: leave it out.")
        if self.local and self.compute:
            raise ValueError(
                f"card {self.name}: a local stage has no compute.\nHint: a device may be far from where Snakemake runs."
            )

    @property
    def is_folder(self) -> bool:
        """Whether it makes a folder of files with digests beside it."""
        return paths.is_folder(self.output)

    @property
    def is_policy(self) -> bool:
        """Whether it makes a policy, whose weights may be pruned."""
        return self.output.endswith("/policy")

    def read(self, plan: Runs, wildcards: Wildcards) -> list[str]:
        """Every path that the stage's manifest names as an input, in order."""
        roles = self.inputs(plan, wildcards)
        return [path for given in roles.values() for path in ([given] if isinstance(given, str) else given)]
