"""The SFT policy: fine-tuned from a base model, or a base model that is instruction-tuned already."""

from collections.abc import Callable

from scripts.lib.kinds import sft as kinds
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.sft import AdoptSft, TrainSft
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Inputs, Wildcards
from scripts.lib.planning.runs import Runs


def trained(plan: Runs, wildcards: Wildcards) -> kinds.SftTrain:
    """The settings block of an SFT policy that is trained."""
    block = plan.config.sft[wildcards["sft"]]
    assert isinstance(block, kinds.SftTrain)  # noqa: S101
    return block


def settings(plan: Runs, wildcards: Wildcards) -> Block:
    """An SFT policy that is trained."""
    return TrainSft(**plan.seeded(trained(plan, wildcards)), dtype=plan.config.dtype)


def base(plan: Runs, wildcards: Wildcards) -> str:
    """Folder of the base that a policy comes from."""
    return plan.base(plan.config.sft[wildcards["sft"]].base)


def train_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The base, and the conversations to train on."""
    return {"base": base(plan, wildcards), "dataset": plan.dataset(trained(plan, wildcards).dataset)}


def tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of the training."""
    block = trained(plan, wildcards)
    return sizes.trained(plan, sizes.rows(plan, block.dataset), 1, block.max_length, block.epochs)


def of_kind(kind: str) -> Callable[[Config], dict[str, list[str]]]:
    """The SFT policies of a kind."""
    return lambda config: {"sft": [name for name, block in config.sft.items() if block.kind == kind]}


OUTPUT = "sft/{sft}/policy"
CARDS = (
    Card(
        name="train_sft",
        output=OUTPUT,
        makes=of_kind("train"),
        inputs=train_inputs,
        settings=settings,
        first=True,
        compute=Compute(
            kind="train",
            model=lambda plan, wildcards: f"base/{trained(plan, wildcards).base}",
            trainer=trained,
            trainer_key=lambda wildcards: f"sft.{wildcards['sft']}",
            longest=lambda plan, wildcards: trained(plan, wildcards).max_length,
            tokens=tokens,
            spreads=True,
        ),
    ),
    Card(
        name="adopt_sft",
        output=OUTPUT,
        makes=of_kind("adopt"),
        inputs=lambda plan, wildcards: {"base": base(plan, wildcards)},
        settings=lambda plan, wildcards: AdoptSft(),
    ),
)
