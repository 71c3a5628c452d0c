"""Base models: made from random weights in the project's world, converted from local files, or fetched from a hub."""

from collections.abc import Callable

from scripts.lib.data import sources
from scripts.lib.kinds import bases as kinds
from scripts.lib.kinds.bases import ConvertFolder, ConvertGguf, FetchBase, MakeBase
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Wildcards
from scripts.lib.planning.runs import Runs
from scripts.lib.stage.digest import file_sha256

CONTEXT = 128  # scripts/make_base.py trains on no longer text


def world(plan: Runs, wildcards: Wildcards) -> kinds.BaseWorld:
    """A base made in the project's world."""
    block = plan.config.bases[wildcards["base"]]
    assert isinstance(block, kinds.BaseWorld)  # noqa: S101
    return block


def make_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """A base model from random weights."""
    return MakeBase(**plan.seeded(world(plan, wildcards)), dtype=plan.config.dtype)


def convert_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """A base model from a package's file, or from a local folder, which counts by its bytes."""
    name = wildcards["base"]
    block = plan.config.bases[name]
    if isinstance(block, kinds.BaseFolder):
        digests = sources.digest(block.path, "*", f"bases.{name}.path")
        return ConvertFolder(kind="folder", license=block.license, files=digests, dtype=plan.config.dtype)
    return ConvertGguf(**block.model_dump(exclude={"shape"}), dtype=plan.config.dtype)


def fetch_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """A base model from a hub; a chat template of ours enters by its bytes too."""
    block = plan.config.bases[wildcards["base"]]
    template = getattr(block, "chat_template", None)
    digest = file_sha256(sources.TEMPLATES / template) if template is not None else None
    return FetchBase(**block.model_dump(exclude={"kind", "shape"}), chat_template_sha256=digest)


def folder(plan: Runs, wildcards: Wildcards) -> list[str]:
    """The local files of a base."""
    name = wildcards["base"]
    block = plan.config.bases[name]
    if not isinstance(block, kinds.BaseFolder):
        return []
    return [str(path) for path in sources.files(block.path, "*", f"bases.{name}.path")]


def of_kind(*kinds_of: str) -> Callable[[Config], dict[str, list[str]]]:
    """The bases of some kinds."""
    return lambda config: {"base": [name for name, block in config.bases.items() if block.kind in kinds_of]}


def shape(plan: Runs, wildcards: Wildcards) -> kinds.Shape | None:
    """A base's shape: it is checked against the model, and correcting it makes nothing again."""
    return getattr(plan.config.bases[wildcards["base"]], "shape", None)


def corpus_tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of the pre-training corpus."""
    block = world(plan, wildcards)
    return sizes.trained(plan, block.texts, 1, CONTEXT, block.epochs)


OUTPUT = "base/{base}/model"
CARDS = (
    Card(
        name="make_base",
        output=OUTPUT,
        makes=of_kind("world"),
        settings=make_settings,
        compute=Compute(
            kind="train",
            model=lambda plan, wildcards: f"base/{wildcards['base']}",
            trainer=world,
            trainer_key=lambda wildcards: f"bases.{wildcards['base']}",
            longest=lambda plan, wildcards: CONTEXT,
            tokens=corpus_tokens,
        ),
    ),
    Card(
        name="convert_base",
        output=OUTPUT,
        makes=of_kind("gguf", "folder"),
        sources=folder,
        settings=convert_settings,
        shape=shape,
    ),
    Card(
        name="fetch_base",
        output=OUTPUT,
        makes=of_kind("hub"),
        settings=fetch_settings,
        shape=shape,
        local=True,
    ),
)
