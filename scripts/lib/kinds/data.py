"""Conversations, preferences and prompts: where their rows come from, and which of them are taken."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from scripts.lib.kinds.bases import CardLicense, Commit, License, Repo, Revision
from scripts.lib.kinds.common import Block, Count, Digests, Flag, LocalPath, LocalPattern, Seed, Share, member_of

Kind = Annotated[Literal["conversations", "preferences"], Field(description="What a row is.")]
Adapter = Annotated[
    str,
    member_of("adapters", also=("auto",)),
    Field(
        description="What reads the rows: a file of scripts/lib/data/adapters by its name; auto recognises the shape."
    ),
]
FilePattern = Annotated[LocalPattern, Field(description="Which files of the folder.")]
HubPattern = Annotated[
    str,
    Field(
        min_length=1,
        description="Which JSONL and parquet files of the repository, by their path in it; * also matches a slash.",
    ),
]
Part = Annotated[
    list[Share],
    Field(
        min_length=2,
        max_length=2,
        description="Share of the rows by the digest of the first user message, from inclusive to exclusive, so that "
        "parts which do not overlap share no prompt.",
    ),
]
Size = Annotated[
    Count | None,
    Field(description="Exact number of rows, the first in digest order; null takes all. A shortfall fails."),
]
PromptSize = Annotated[Count, Field(description="Prompts in each SET-N: exactly as many, a shortfall fails.")]
ShardPrompts = Annotated[Count, Field(description="Prompts in one shard file.")]
MaxCharacters = Annotated[
    Count | None, Field(description="Longer rows (all turns together) are dropped and counted; null drops none.")
]
DropSystem = Annotated[Flag, Field(description="Take rows without their system turn; how many had one is counted.")]
FilePath = Annotated[
    LocalPath, Field(description="A folder, or one file; relative to the repository or absolute, without ~ and $NAME.")
]


class DatasetWorld(Block):
    """Made by the project's own small world."""

    kind: Literal["world"] = Field(description="Made here.")
    type: Kind
    split: Literal["sft", "reward", "reward_heldout"] = Field(
        description="Which of the world's disjoint prompt splits; conversations are in sft, preferences in the others."
    )
    size: Count = Field(description="Number of rows.")
    seed: Seed = None


class DatasetFiles(Block):
    """Local JSONL or parquet files, plain or gzip.

    A row is HH-RLHF's published form, or messages, or prompt and response, or prompt, chosen and rejected, or Nectar's
    ranked answers.
    """

    kind: Literal["files"] = Field(description="Read from local files.")
    type: Kind
    path: FilePath
    pattern: FilePattern = "*"
    adapter: Adapter = "auto"
    part: Part = Field(default=[0.0, 1.0])
    size: Size = None
    max_characters: MaxCharacters = None
    drop_system: DropSystem = False
    license: License = "unknown"


class DatasetHub(Block):
    """JSONL or parquet files (plain or gzip) of a data set's repository on a hub; rows as in local files."""

    kind: Literal["hub"] = Field(description="Downloaded from a hub.")
    type: Kind
    repo: Repo
    revision: Revision
    pattern: HubPattern = "*"
    adapter: Adapter = "auto"
    part: Part = Field(default=[0.0, 1.0])
    size: Size = None
    max_characters: MaxCharacters = None
    drop_system: DropSystem = False
    license: CardLicense = "unknown"
    rows: Count | None = Field(
        default=None,
        description="Rows that the files are expected to have, before `part`: for the forecast only, where `size` is "
        "null. Changing it reruns nothing.",
    )


Dataset = Annotated[DatasetWorld | DatasetFiles | DatasetHub, Field(discriminator="kind")]


class PromptsWorld(Block):
    """Prompts of the project's own small world."""

    kind: Literal["world"] = Field(description="Made here.")
    split: Literal["iteration", "validation", "evaluation"] = Field(
        description="Which of the world's disjoint prompt splits; SET-N is the Nth slice of `iteration`."
    )
    size: PromptSize
    shard_prompts: ShardPrompts = 1000
    seed: Seed = None


class PromptsFiles(Block):
    """Prompts of local files, in the shapes that data sets take; SET-N is the Nth slice in digest order."""

    kind: Literal["files"] = Field(description="Read from local files.")
    path: FilePath
    pattern: FilePattern = "*"
    adapter: Adapter = "auto"
    part: Part = Field(default=[0.0, 1.0])
    size: PromptSize
    max_characters: MaxCharacters = None
    shard_prompts: ShardPrompts = 1000
    license: License = "unknown"


def _text_or_list(value: Any) -> str | None:
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else None


# The tags of a key that takes a text or a list are JSON's names of the two.
TextOrList = Discriminator(_text_or_list)


class PromptsHub(Block):
    """Prompts of a data set's repository on a hub.

    SET-N is the Nth slice in digest order, or comes from a repository of its own.
    """

    kind: Literal["hub"] = Field(description="Downloaded from a hub.")
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/([A-Za-z0-9_.-]|[{]n[}])+$")] = Field(
        description="OWNER/NAME; {n} in it stands for N, so that every SET-N has its own repository."
    )
    revision: Annotated[
        Annotated[Commit, Tag("string")] | Annotated[list[Commit], Field(min_length=1), Tag("array")], TextOrList
    ] = Field(
        description="A commit, or `main`, as for a data set; where the repository has {n}, a list with one for each "
        "iteration."
    )
    pattern: HubPattern = "*"
    adapter: Adapter = "auto"
    part: Part = Field(default=[0.0, 1.0])
    size: PromptSize
    max_characters: MaxCharacters = None
    shard_prompts: ShardPrompts = 1000
    license: CardLicense = "unknown"


Prompts = Annotated[PromptsWorld | PromptsFiles | PromptsHub, Field(discriminator="kind")]

# Where rows come from, whether they are conversations, preferences or prompts.
World = DatasetWorld | PromptsWorld
Files = DatasetFiles | PromptsFiles
Hub = DatasetHub | PromptsHub


# Settings of stages


class FetchData(Block):
    """Files of a data set's repository on a hub."""

    repo: str
    revision: str
    pattern: str
    license: str


class Rows(Block):
    """Which rows of files are taken, and how they are read."""

    adapter: Adapter
    part: Part
    max_characters: MaxCharacters
    license: str


class Curated(Rows):
    """A data set that is read from files."""

    type: Kind
    pattern: str
    size: Size
    drop_system: DropSystem


class CurateWorld(DatasetWorld):
    """A data set that the world makes."""

    seed: int


class CurateFiles(Curated):
    """A data set of local files, which count by their bytes."""

    kind: Literal["files"]
    files: Digests


class CurateHub(Curated):
    """A data set of a hub."""

    kind: Literal["hub"]
    repo: str
    revision: str


CurateData = Annotated[CurateWorld | CurateFiles | CurateHub, Field(discriminator="kind")]


class Slice(Block):
    """The prompt set SET-N: `number` is N, or 1 where every SET-N has a repository of its own."""

    size: int
    number: int


class PromptsOfWorld(Slice):
    """Prompts that the world makes."""

    kind: Literal["world"]
    split: Literal["iteration", "validation", "evaluation"]
    seed: int


class PromptsOfFiles(Rows, Slice):
    """Prompts of local files, which count by their bytes."""

    kind: Literal["files"]
    pattern: str
    files: Digests


class PromptsOfHub(Rows, Slice):
    """Prompts of a hub."""

    kind: Literal["hub"]
    repo: str
    revision: str
    pattern: str


MakePrompts = Annotated[PromptsOfWorld | PromptsOfFiles | PromptsOfHub, Field(discriminator="kind")]
