"""What types cannot say of a configuration: names that must exist, and numbers of different blocks that must fit."""

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from scripts.lib.data import sources
from scripts.lib.data.sources import TEMPLATES
from scripts.lib.kinds.bases import BaseFolder, BaseHub
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.data import Dataset, DatasetWorld, Files, Hub, Prompts, PromptsHub, PromptsWorld, World
from scripts.lib.kinds.evaluation import Evaluation
from scripts.lib.kinds.rewards import RewardBt
from scripts.lib.kinds.runs import WHOLE_BATCH, Dpo, Iteration, Run
from scripts.lib.kinds.sampling import Sampling
from scripts.lib.kinds.sft import SftTrain
from scripts.lib.kinds.trainer import Finetuning, Lora, Trainer
from scripts.lib.planning import cluster, model_shape
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.forecast import computation
from scripts.lib.planning.paths import Paths
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints

Entry = TypeVar("Entry")

WILDCARD = re.compile(r"[*?[]")
WORLD_PROMPTS = 30_000  # for iterations; it has some 38,000, but drawing the last ones takes long
TRAINED_BY = {"bases": "make_base", "sft": "train_sft", "rewards": "train_reward"}
SMOOTHED_LOSSES = {"robust", "exo_pair", "aot", "aot_unpaired"}


def overlap(one: Dataset | Prompts, other: Dataset | Prompts) -> bool:
    """Whether two data sets or prompt sets can share a row: the same world split, or overlapping parts of a file.

    Parts that do not overlap share no prompt, whatever the files. Local files are compared themselves, a hub's by
    repository and pattern, since what lies there is not known yet. Copies under another name go unnoticed.
    """
    if isinstance(one, World) and isinstance(other, World):
        return one.split == other.split
    if isinstance(one, Hub) and isinstance(other, Hub):
        same = _holds(one, other) or _holds(other, one)
        return _parts_meet(one, other) and same and _may_share_a_file(one.pattern, other.pattern)
    if isinstance(one, Files) and isinstance(other, Files):
        return _parts_meet(one, other) and _read_one_file(one, other)
    return False


def _parts_meet(one: Files | Hub, other: Files | Hub) -> bool:
    return max(one.part[0], other.part[0]) < min(one.part[1], other.part[1])


def _read_one_file(one: Files, other: Files) -> bool:
    """Whether both read the same local file, or may once there are files."""
    these, those = (sources.present(block.path, block.pattern) for block in (one, other))
    if these and those:
        return bool({file.resolve() for file in these} & {file.resolve() for file in those})
    same = (ROOT / one.path).resolve() == (ROOT / other.path).resolve()
    return same and _may_share_a_file(one.pattern, other.pattern)


def _holds(one: Hub, other: Hub) -> bool:
    """Whether the repository of `other` is among those of `one`, which are several where its name has {n}.

    A hub takes a name in capitals and in small letters alike.
    """
    whole, part = one.repo.lower(), other.repo.lower()
    if "{n}" not in whole or "{n}" in part:
        return whole == part
    if isinstance(one.revision, list):
        return part in [whole.replace("{n}", str(n + 1)) for n in range(len(one.revision))]
    return re.fullmatch(re.escape(whole).replace(re.escape("{n}"), "[1-9][0-9]*"), part) is not None


def _may_share_a_file(one: str, other: str) -> bool:
    """Whether a path could match both patterns, told by what stands before their first wildcards.

    data/train-* and data/test-* share none; train/* and *.parquet may, and count as if they did.
    """
    for name, pattern in ((one, other), (other, one)):
        if not WILDCARD.search(name):
            return fnmatch.fnmatchcase(name, pattern)
    starts = WILDCARD.split(one)[0], WILDCARD.split(other)[0]
    return starts[0].startswith(starts[1]) or starts[1].startswith(starts[0])


class Checks:
    """All checks of one configuration whose keys and types are right; what is wrong goes to `complaints`.

    `made` says whether the models that have been made may speak; while they are being made, they must not.
    """

    def __init__(self, config: Config, complaints: Complaints, made: bool = True) -> None:
        self.config, self.wrong, self.made = config, complaints, made
        self._limits: dict[str, tuple[int, str] | None] = {}

    def everything(self) -> None:
        """Run every check."""
        self._resources()
        self.refer("run", self.config.run, "runs", self.config.runs)
        self._sft_and_rewards()
        self._data()
        self._samplings_and_pairings()
        for name, evaluation in self.config.evaluation.items():
            self._evaluation(f"evaluation.{name}", evaluation)
        for name, run in self.config.runs.items():
            self._run(f"runs.{name}", run)
        blocks: tuple[tuple[str, Mapping[str, object]], ...] = (
            ("bases", self.config.bases),
            ("sft", self.config.sft),
            ("rewards", self.config.rewards),
        )
        for block, entries in blocks:
            for name, entry in entries.items():
                if isinstance(entry, Trainer):
                    self._batch(f"{block}.{name}", entry.batch_size, TRAINED_BY[block])
                if isinstance(entry, Finetuning):
                    self._adapters(f"{block}.{name}", entry.lora, TRAINED_BY[block])

    def refer(
        self, key: str, name: str | None, block: str, entries: Mapping[str, Entry], **wanted: str
    ) -> Entry | None:
        """The entry `name` of a block, or None with a complaint if it is missing or of another kind than wanted."""
        if name is None:
            return None
        if name not in entries:
            self.wrong.unknown(key, name, f"no such entry in {block}", entries)
            return None
        for field, value in wanted.items():
            if (said := getattr(entries[name], field)) != value:
                text = f"{block}.{name}.{field} is {said!r}, must be {value!r}"
                self.wrong.add(key, name, text, f"name an entry of {block} whose {field} is {value}.")
                return None
        return entries[name]

    def _sft_and_rewards(self) -> None:
        bases, datasets = self.config.bases, self.config.datasets
        for name, sft in self.config.sft.items():
            self.refer(f"sft.{name}.base", sft.base, "bases", bases)
            if isinstance(sft, SftTrain):
                self.refer(f"sft.{name}.dataset", sft.dataset, "datasets", datasets, type="conversations")
                self._trained_within(f"sft.{name}", sft, sft.base)
        for name, reward in self.config.rewards.items():
            if not isinstance(reward, RewardBt):
                continue
            key = f"rewards.{name}"
            block, _, target = reward.init.partition("/")
            if block == "sft":
                self.refer(f"{key}.init", target, "sft", self.config.sft)
                self._trained_within(key, reward, self._base_of(target))
            elif block == "base":
                self.refer(f"{key}.init", target, "bases", bases)
                self._trained_within(key, reward, target)
            else:
                self.wrong.add(f"{key}.init", reward.init, "must be sft/NAME or base/NAME", "such as sft/tiny.")
            self.refer(f"{key}.dataset", reward.dataset, "datasets", datasets, type="preferences")
            self.refer(f"{key}.heldout", reward.heldout, "datasets", datasets, type="preferences")
            heldout, trained = datasets.get(reward.heldout), datasets.get(reward.dataset)
            if heldout and trained and overlap(heldout, trained):
                text = f"shares prompts with the training set {reward.dataset!r}"
                self.wrong.add(f"{key}.heldout", reward.heldout, text, "hold out another split or part.")

    def _data(self) -> None:
        for name, dataset in self.config.datasets.items():
            if isinstance(dataset, DatasetWorld) and (dataset.split == "sft") != (dataset.type == "conversations"):
                text, hint = f"does not hold {dataset.type}", "conversations are in sft, preferences in the others."
                self.wrong.add(f"datasets.{name}.split", dataset.split, text, hint)
        for name, base in self.config.bases.items():
            if isinstance(base, BaseFolder):
                model_shape.check_folder(f"bases.{name}", base, self.wrong)
            template = base.chat_template if isinstance(base, BaseHub) else None
            if template is not None and not (TEMPLATES / template).is_file():
                known = sorted(path.name for path in TEMPLATES.glob("*.jinja"))
                self.wrong.unknown(f"bases.{name}.chat_template", template, "no such file in config/templates", known)
        for name, prompts in self.config.prompts.items():
            if isinstance(prompts, PromptsHub):
                self._revisions(f"prompts.{name}.revision", prompts)
        sources: tuple[tuple[str, Mapping[str, object]], ...] = (
            ("datasets", self.config.datasets),
            ("prompts", self.config.prompts),
        )
        for block, entries in sources:
            for name, source in entries.items():
                if isinstance(source, Files | Hub) and source.part[0] >= source.part[1]:
                    text = "the first number must be below the second"
                    self.wrong.add(f"{block}.{name}.part", source.part, text, "[0, 0.5] is the first half.")

    def _revisions(self, key: str, prompts: PromptsHub) -> None:
        """One repository has one revision, several have one each."""
        several, revision = "{n}" in prompts.repo, prompts.revision
        if several and not isinstance(revision, list) and revision != "main":
            text = "is the commit of one repository; `repo` has {n}"
            self.wrong.add(key, revision, text, "name a list, one commit for each iteration.")
        if isinstance(revision, list) and not several:
            self.wrong.add(key, revision, "`repo` has no {n}", "name one commit.")

    def _samplings_and_pairings(self) -> None:
        for name, sampling in self.config.samplings.items():
            count = len(sampling.temperatures)
            if sampling.k % count:
                text = f"is not a multiple of its {count} temperatures"
                self.wrong.add(f"samplings.{name}.k", sampling.k, text, "K is split into equal blocks.")
        for name, pairing in self.config.pairings.items():
            if pairing.chosen_quantile <= pairing.rejected_quantile:
                key, value = f"pairings.{name}.chosen_quantile", pairing.chosen_quantile
                self.wrong.add(key, value, "must be above rejected_quantile", "1 is the best response, 0 the worst.")

    def _evaluation(self, key: str, evaluation: Evaluation) -> None:
        held = self.refer(f"{key}.prompts", evaluation.prompts, "prompts", self.config.prompts)
        sampling = self.refer(f"{key}.sampling", evaluation.sampling, "samplings", self.config.samplings)
        if sampling and not sampling.record_logprobs:
            hint = "the KL to the SFT policy needs them."
            self.wrong.add(f"{key}.sampling", evaluation.sampling, "must have record_logprobs: true", hint)
        if sampling and sampling.engine != "transformers" and not sampling.check_responses:
            text = f"has engine: {sampling.engine} and check_responses: 0"
            hint = "leave check_responses out: the KL takes the trainer's log-probabilities from the check."
            self.wrong.add(f"{key}.sampling", evaluation.sampling, text, hint)
        bases = dict.fromkeys(self._base_of(run.sft) for run in self.config.runs.values())
        for base in bases:
            self._sampled_within(f"{key}.sampling", evaluation.sampling, base)
        for reward in evaluation.rewards:
            self.refer(f"{key}.rewards", reward, "rewards", self.config.rewards)
            self._judged_within(f"{key}.rewards", reward, evaluation.sampling, set(bases))
        for name, trained in self._trained_on().items():
            if held and overlap(held, trained):
                text = f"training uses prompts of {name}, which it shares"
                self.wrong.add(f"{key}.prompts", evaluation.prompts, text, "evaluate on another split or part.")

    def _trained_on(self) -> dict[str, Dataset | Prompts]:
        """The data sets and prompt sets that something trains on, by their keys, such as datasets.talks."""
        trainers = [*self.config.sft.values(), *self.config.rewards.values()]
        used = [block.dataset for block in trainers if isinstance(block, SftTrain | RewardBt)]
        used += [part.dataset for run in self.config.runs.values() for part in run.mix]
        named: dict[str, Dataset | Prompts] = {
            f"datasets.{name}": self.config.datasets[name] for name in used if name in self.config.datasets
        }
        prompts = self.config.prompts
        return named | {
            f"prompts.{run.prompts}": prompts[run.prompts]
            for run in self.config.runs.values()
            if run.prompts in prompts
        }

    def _run(self, key: str, run: Run) -> None:
        self.refer(f"{key}.sft", run.sft, "sft", self.config.sft)
        prompts = self.refer(f"{key}.prompts", run.prompts, "prompts", self.config.prompts)
        if run.prompts is None and (run.method != "dpo" or not run.mix):
            hint = "only a dpo run with a `mix` of curated preferences can do without."
            self.wrong.add(f"{key}.prompts", None, "missing", hint)
        if isinstance(prompts, PromptsWorld):
            if prompts.split != "iteration":
                text = f"prompts.{run.prompts}.split is {prompts.split!r}, must be 'iteration'"
                self.wrong.add(f"{key}.prompts", run.prompts, text, "the other splits are held out.")
            if run.iterations * prompts.size > WORLD_PROMPTS:
                text = f"the world has {WORLD_PROMPTS} prompts, and prompts.{run.prompts}.size is {prompts.size}"
                self.wrong.add(f"{key}.iterations", run.iterations, text, "lower one of them.")
        if isinstance(prompts, PromptsHub) and isinstance(prompts.revision, list):
            if run.iterations > len(prompts.revision):
                text = f"prompts.{run.prompts}.revision is for {len(prompts.revision)} iterations"
                self.wrong.add(f"{key}.iterations", run.iterations, text, "lower it, or add revisions.")
        for i, part in enumerate(run.mix):
            where = f"{key}.mix[{i}]"
            self.refer(f"{where}.dataset", part.dataset, "datasets", self.config.datasets, type="preferences")
            self.refer(f"{where}.pairing", part.pairing, "pairings", self.config.pairings)
        for i, number in enumerate(run.keep if isinstance(run.keep, list) else []):
            if number > run.iterations:
                text = f"the run has iterations 1 to {run.iterations}"
                self.wrong.add(f"{key}.keep[{i}]", number, text, "name some of these, or say `all` or `last`.")
        self._iteration(key, run)
        for n, own in run.overrides.items():
            if int(n) > run.iterations:
                text, hint = f"the run has iterations 1 to {run.iterations}", f"raise {key}.iterations."
                self.wrong.add(f"{key}.overrides.{n}", None, text, hint)
            self._iteration(f"{key}.overrides.{n}", run.at(int(n)), own)

    def _iteration(self, key: str, run: Run, own: Iteration | None = None) -> None:
        """The settings in force in an iteration; `own` are those it sets for itself, and only they are blamed."""

        def blamed(name: str) -> bool:
            """Whether the iteration sets a key, or any key of a block; the run itself sets all."""
            said = getattr(own, name) if own else None
            return own is None or (bool(said.model_fields_set) if isinstance(said, Finetuning) else said is not None)

        method = run.trainer
        sampling = None
        if run.prompts is not None:
            for field in ("reward", "sampling", *(["pairing"] if run.method == "dpo" else [])):
                if not blamed(field):
                    continue
                if (name := getattr(run, field)) is None:
                    self.wrong.add(f"{key}.{field}", None, "missing", f"name one of {field}s.")
                else:
                    self.refer(f"{key}.{field}", name, f"{field}s", getattr(self.config, f"{field}s"))
            sampling = self.config.samplings.get(run.sampling or "")
        if sampling and run.sampling and blamed("sampling"):
            self._sampled_within(f"{key}.sampling", run.sampling, self._base_of(run.sft))
            if run.method == "dpo":
                self._two_can_differ(f"{key}.sampling", run.sampling, sampling)
        if run.reward and run.prompts is not None and (blamed("sampling") or blamed("reward")):
            self._judged_within(f"{key}.reward", run.reward, run.sampling, {self._base_of(run.sft)})
        if blamed("sampling") or blamed(run.method):
            needed = sampling.max_prompt_tokens + sampling.max_new_tokens if sampling else 0
            if method.max_length < needed:
                text = f"prompts and responses have up to {needed} tokens"
                hint = f"raise it, or lower max_prompt_tokens or max_new_tokens of samplings.{run.sampling}."
                self.wrong.add(f"{key}.{run.method}.max_length", method.max_length, text, hint)
        if blamed(run.method):
            self._trained_within(f"{key}.{run.method}", method, self._base_of(run.sft))
            self._batch(f"{key}.{run.method}", method.batch_size, f"train_{run.method}")
            self._adapters(f"{key}.{run.method}", method.lora, f"train_{run.method}")
        if blamed("dpo"):
            self._losses(f"{key}.dpo", run.dpo)

    def _losses(self, key: str, dpo: Dpo) -> None:
        weights, losses, smoothing = dpo.loss_weights, dpo.loss, dpo.label_smoothing
        if weights is not None and len(weights) != len(losses):
            self.wrong.add(f"{key}.loss_weights", weights, "must fit `loss`", f"one number for each of {losses}.")
        if "exo_pair" in losses and smoothing == 0:
            self.wrong.add(f"{key}.label_smoothing", 0, "exo_pair needs more than 0", "its paper uses 0.001.")
        if smoothing > 0 and not SMOOTHED_LOSSES & set(losses):
            text, hint = f"none of {losses} uses it", f"only {', '.join(sorted(SMOOTHED_LOSSES))} do in TRL."
            self.wrong.add(f"{key}.label_smoothing", smoothing, text, hint)
        processes = cluster.needs(self.config, "train_dpo").world
        at_once = min(self.config.runtime.train_micro_batch, dpo.batch_size // processes)
        if (sorting := sorted(WHOLE_BATCH & set(losses))) and at_once < dpo.batch_size:
            whole = f"{' and '.join(sorting)} sorts all {dpo.batch_size} rows of a batch"
            text = f"{whole}, and a forward pass of one of {processes} processes holds {at_once}"
            hint = f"set runtime.train_micro_batch to {dpo.batch_size} and train in one process, or take another loss."
            self.wrong.add(f"{key}.loss", losses, text, hint)

    def _two_can_differ(self, key: str, name: str, sampling: Sampling) -> None:
        """A pair takes two responses, and greedy ones to one prompt are the same."""
        if sampling.k < 2:
            text = f"draws {sampling.k} response to a prompt, and dpo makes pairs of two"
            self.wrong.add(key, name, text, f"raise samplings.{name}.k, or set method to raft.")
        elif not any(sampling.temperatures):
            text = "draws greedily only, so all responses to a prompt are the same and make no pair"
            self.wrong.add(key, name, text, f"give samplings.{name}.temperatures one above 0.")

    def _base_of(self, sft: str) -> str | None:
        """The base of an SFT policy; None where a reference to it is wrong, which is said elsewhere."""
        return self.config.sft[sft].base if sft in self.config.sft else None

    def _positions(self, base: str | None) -> tuple[int, str] | None:
        """The longest sequence that a base is made for, and what says so."""
        if base is None or base not in self.config.bases:
            return None
        if base not in self._limits:  # it takes reading files
            made = Path(Paths(self.config).base(base)) if self.made else None
            self._limits[base] = model_shape.positions(f"bases.{base}", self.config.bases[base], made)
        return self._limits[base]

    def _trained_within(self, key: str, block: Finetuning, base: str | None) -> None:
        """Rows that are trained on are no longer than the model is made for."""
        limit = self._positions(base)
        if limit is not None and block.max_length > limit[0]:
            self.wrong.add(f"{key}.max_length", block.max_length, limit[1], "lower it: longer rows are dropped.")

    def _sampled_within(self, key: str, name: str, base: str | None) -> None:
        """Prompt and response together are no longer than the model is made for that samples or judges them."""
        sampling, limit = self.config.samplings.get(name), self._positions(base)
        if sampling is None or limit is None:
            return
        needed = sampling.max_prompt_tokens + sampling.max_new_tokens
        if needed > limit[0]:
            text = f"prompts and responses have up to {needed} tokens, and {limit[1]}"
            self.wrong.add(key, name, text, f"lower max_prompt_tokens or max_new_tokens of samplings.{name}.")

    def _judged_within(self, key: str, name: str, sampling: str | None, bases: set[str | None]) -> None:
        """The same of a reward model that judges responses, where it is of none of the bases that sample them."""
        reward, drawn = self.config.rewards.get(name), self.config.samplings.get(sampling or "")
        if not isinstance(reward, RewardBt) or drawn is None:
            return
        block, _, init = reward.init.partition("/")
        base = init if block == "base" else self._base_of(init)
        limit = None if base in bases else self._positions(base)
        needed = drawn.max_prompt_tokens + drawn.max_new_tokens
        if limit is not None and needed > limit[0]:
            text = f"samplings.{sampling} gives up to {needed} tokens to judge, and {limit[1]}"
            self.wrong.add(key, name, text, "lower max_prompt_tokens or max_new_tokens, or start from another base.")

    def _resources(self) -> None:
        """A process trains or scores on one GPU; only an engine that samples spreads over several."""
        spread = self.config.runtime.vllm_tensor_parallel
        several = [name for name, card in CARDS.items() if card.compute and card.compute.spreads]
        for rule in cluster.computing():
            needed, samples = cluster.needs(self.config, rule), computation(rule).kind == "sample"
            if rule in several and needed.gpus and needed.processes != needed.gpus:
                text, hint = f"is not its {needed.gpus} GPUs on a node", "leave `processes` out: one for each GPU."
                self.wrong.add(f"resources.{rule}.processes", needed.processes, text, hint)
            elif samples and needed.gpus not in (0, spread):
                text = f"an engine spreads over runtime.vllm_tensor_parallel = {spread}"
                self.wrong.add(f"resources.{rule}.gpus", needed.gpus, text, "leave it out; shards run side by side.")
            elif rule not in several and not samples and needed.gpus > 1:
                text = "this step uses one GPU"
                self.wrong.add(f"resources.{rule}.gpus", needed.gpus, text, "ask for one; shards run side by side.")
            if rule not in several and "sharding" in self.config.resources.own(rule).model_fields_set:
                hint = f"leave it out; {', '.join(several)} can share a model."
                self.wrong.add(f"resources.{rule}.sharding", needed.sharding, "this step takes one process", hint)

    def _adapters(self, key: str, lora: Lora | None, rule: str) -> None:
        """DeepSpeed shares out float weights; those in 4 bits stay whole, and every process has to hold them."""
        sharding = cluster.needs(self.config, rule).sharding
        if lora and lora.quantization and sharding != "data":
            text, hint = f"excludes sharding {sharding} of {rule}", f"set resources.{rule}.sharding to data."
            self.wrong.add(f"{key}.lora.quantization", lora.quantization, text, hint)
        if lora and "all-linear" in lora.targets and len(lora.targets) > 1:
            text, hint = "all-linear stands for all of them", "name it alone, or name layers."
            self.wrong.add(f"{key}.lora.targets", lora.targets, text, hint)

    def _batch(self, key: str, batch: int, rule: str) -> None:
        """Processes and micro-batch must divide every batch: the rest is gradient accumulation."""
        processes = cluster.needs(self.config, rule).world
        if batch % processes:
            text = f"does not divide among the {processes} processes of {rule}"
            self.wrong.add(f"{key}.batch_size", batch, text, f"choose a multiple of {processes}, or other `resources`.")
            return
        micro = min(self.config.runtime.train_micro_batch, batch // processes)
        if batch // processes % micro:
            share = f" / {processes} processes" if processes > 1 else ""
            text, hint = f"does not divide {key}.batch_size = {batch}{share}", "choose a divisor of every batch size."
            self.wrong.add("runtime.train_micro_batch", micro, text, hint)
