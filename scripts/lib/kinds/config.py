"""The whole configuration: every key, its type, its range, its default and what it means stand in these models.

Blocks under a name (datasets, prompts, sft, …) are what runs refer to. Keys of `runtime` decide how fast the work goes,
those of `resources` what a step asks a cluster for; changing them reruns nothing.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from scripts.lib.kinds.bases import Base
from scripts.lib.kinds.common import Block, BlockName, LocalPath, Name, SeedNumber
from scripts.lib.kinds.data import Dataset, Prompts
from scripts.lib.kinds.evaluation import Evaluation
from scripts.lib.kinds.pairing import Pairing
from scripts.lib.kinds.rewards import Reward
from scripts.lib.kinds.runs import Run
from scripts.lib.kinds.runtime import Forecast, Resources, Runtime
from scripts.lib.kinds.sampling import Sampling
from scripts.lib.kinds.sft import Sft

# Keys that have a new name, as places in which * is any name. The old names are still read.
RENAMED = {("runs", "*", "each"): "overrides", ("resources", "*", "strategy"): "sharding"}


def _results(value: Any, info: ValidationInfo) -> Any:
    return f"results/{info.data.get('preset')}" if value in (None, "") else value


def _said(value: Any) -> Any:
    """A word of the command line as a boolean; Snakemake takes `True` for one, and leaves `true` as text."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _results_folder(path: str) -> str:
    """The folder as Snakemake names it. Braces would be wildcards there."""
    if set(path) & {"{", "}"}:
        raise PydanticCustomError("results", "braces would be wildcards", {"hint": "name a folder without { and }."})
    if (folder := os.path.normpath(path)) in (".", "..", "/"):
        raise PydanticCustomError("results", "must be a folder of their own", {"hint": "such as results/mine."})
    if folder.startswith("-"):
        raise PydanticCustomError("results", "a step would take it for an option", {"hint": "such as results/mine."})
    return folder


def _first_run(value: Any, info: ValidationInfo) -> Any:
    return next(iter(info.data.get("runs", {})), "") if value is None else value


class Config(Block):
    """The whole configuration of a build."""

    preset: Name = Field(description="Name of this whole configuration; also its results folder.")
    extends: Name | None = Field(
        default=None,
        description="Another preset (tiny, or one of config/presets) that this one lies over, like an overlay. Without "
        "a `preset` of its own it keeps that one's name and results.",
    )
    results: Annotated[
        LocalPath, AfterValidator(_results_folder), BeforeValidator(_results, json_schema_input_type=str | None)
    ] = Field(
        default=None,
        validate_default=True,
        description="Folder of all artifacts; null means results/PRESET. May lie on scratch. Moving it reruns nothing.",
    )
    seed: SeedNumber = Field(
        default=1, description="Seed of every random choice; a block's own `seed` replaces it there."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Number format of weights and arithmetic in training and scoring."
    )
    bases: dict[BlockName, Base] = Field(default={}, description="Pretrained language models.")
    datasets: dict[BlockName, Dataset] = Field(default={}, description="Conversations and preferences.")
    prompts: dict[BlockName, Prompts] = Field(default={}, description="Prompt sets; SET-N is the one of iteration N.")
    sft: dict[BlockName, Sft] = Field(default={}, description="Supervised fine-tuning.")
    rewards: dict[BlockName, Reward] = Field(default={}, description="Labellers of responses, whatever their kind.")
    samplings: dict[BlockName, Sampling] = Field(default={}, description="How responses are drawn.")
    pairings: dict[BlockName, Pairing] = Field(default={}, description="How responses become preference pairs.")
    runs: dict[BlockName, Run] = Field(min_length=1, description="Named experiments.")
    # After `runs`, because null is the first of them.
    run: Annotated[str, BeforeValidator(_first_run, json_schema_input_type=str | None)] = Field(
        default=None,
        validate_default=True,
        description="The run that the named targets (iter3_policy, …) act on; null means the first in `runs`.",
    )
    replace: Annotated[bool, BeforeValidator(_said)] = Field(
        default=False,
        description="Whether a build may replace trained weights, and discard what an interrupted step of other "
        "settings has saved, without asking; give it by `--config replace=true`.",
    )
    evaluation: dict[BlockName, Evaluation] = Field(default={}, description="What every policy is judged by.")
    runtime: Runtime = Field(default_factory=Runtime, description="How fast the work goes.")
    resources: Resources = Field(
        default_factory=lambda: Resources({}), description="What steps take of a machine or ask a cluster for."
    )
    forecast: Forecast = Field(default_factory=Forecast, description="What memory and time are forecast from.")
