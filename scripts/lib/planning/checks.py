"""What a schema cannot say of a configuration: names that must exist, and numbers of different blocks that must fit."""

import fnmatch
import re
from typing import Any

from scripts.lib.data import sources
from scripts.lib.data.sources import TEMPLATES
from scripts.lib.planning import cluster
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints

Config = dict[str, Any]
NAME = re.compile(r"[a-z0-9_]+")
WILDCARD = re.compile(r"[*?[]")
NAMED_BLOCKS = ("bases", "datasets", "prompts", "sft", "rewards", "samplings", "pairings", "runs", "evaluation")
WORLD_ITERATIONS = 10
TRAINED_BY = {"bases": "make_base", "sft": "train_sft", "rewards": "train_reward"}
SMOOTHED_LOSSES = {"robust", "exo_pair", "aot", "aot_unpaired"}


def overlap(one: Config, other: Config) -> bool:
    """Whether two data sets or prompt sets can share a row: the same world split, or overlapping parts of a file.

    Parts that do not overlap share no prompt, whatever the files. Local files are compared themselves, a hub's by
    repository and pattern, since what lies there is not known yet. Copies under another name go unnoticed.
    """
    if one["kind"] != other["kind"]:
        return False
    if one["kind"] == "world":
        return bool(one["split"] == other["split"])
    if max(one["part"][0], other["part"][0]) >= min(one["part"][1], other["part"][1]):
        return False
    if one["kind"] == "hub":
        return (_holds(one, other) or _holds(other, one)) and _may_share_a_file(one["pattern"], other["pattern"])
    these, those = (sources.present(block["path"], block["pattern"]) for block in (one, other))
    if these and those:
        return bool({file.resolve() for file in these} & {file.resolve() for file in those})
    same = (ROOT / one["path"]).resolve() == (ROOT / other["path"]).resolve()
    return same and _may_share_a_file(one["pattern"], other["pattern"])


def _holds(one: Config, other: Config) -> bool:
    """Whether the repository of `other` is among those of `one`, which are several where its name has {n}.

    A hub takes a name in capitals and in small letters alike.
    """
    whole, part = one["repo"].lower(), other["repo"].lower()
    if "{n}" not in whole or "{n}" in part:
        return bool(whole == part)
    if isinstance(one["revision"], list):
        return part in [whole.replace("{n}", str(n + 1)) for n in range(len(one["revision"]))]
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
    """All checks of one configuration that is complete already; complaints go to `found`."""

    def __init__(self, config: Config, found: Complaints) -> None:
        self.config, self.found = config, found

    def everything(self) -> None:
        """Run every check."""
        for block in NAMED_BLOCKS:
            for name in self.config[block]:
                if not NAME.fullmatch(name):
                    self.found.add(f"{block}.{name}", None, "names become folder names", "use a-z, 0-9 and _ only.")
        self._resources()
        if self.config["run"] is not None:
            self.refer("run", self.config["run"], "runs")
        self._sft_and_rewards()
        self._data()
        self._samplings_and_pairings()
        for name, evaluation in self.config["evaluation"].items():
            self._evaluation(f"evaluation.{name}", evaluation)
        for name, run in self.config["runs"].items():
            self._run(f"runs.{name}", run)
        for block in ("bases", "sft", "rewards"):
            for name, entry in self.config[block].items():
                if "batch_size" in entry:
                    self._batch(f"{block}.{name}", entry["batch_size"], TRAINED_BY[block])
                self._adapters(f"{block}.{name}", entry.get("lora"), TRAINED_BY[block])

    def refer(self, key: str, name: str | None, block: str, **wanted: str) -> Config | None:
        """The entry `name` of a block, or None with a complaint if it is missing or of another kind than wanted."""
        if name is None:
            return None
        if name not in self.config[block]:
            self.found.unknown(key, name, f"no such entry in {block}", self.config[block])
            return None
        target: Config = self.config[block][name]
        for field, value in wanted.items():
            if target.get(field) != value:
                text = f"{block}.{name}.{field} is {target.get(field)!r}, must be {value!r}"
                self.found.add(key, name, text, f"name an entry of {block} whose {field} is {value}.")
                return None
        return target

    def _sft_and_rewards(self) -> None:
        for name, sft in self.config["sft"].items():
            self.refer(f"sft.{name}.base", sft["base"], "bases")
            self.refer(f"sft.{name}.dataset", sft.get("dataset"), "datasets", type="conversations")
            self._trained_within(f"sft.{name}", sft, sft["base"])
        for name, reward in self.config["rewards"].items():
            if reward["kind"] != "bt":
                continue
            key = f"rewards.{name}"
            block, _, target = reward["init"].partition("/")
            if block not in ("sft", "base"):
                self.found.add(f"{key}.init", reward["init"], "must be sft/NAME or base/NAME", "such as sft/tiny.")
            else:
                self.refer(f"{key}.init", target, {"sft": "sft", "base": "bases"}[block])
                self._trained_within(key, reward, self._base_of(target) if block == "sft" else target)
            self.refer(f"{key}.dataset", reward["dataset"], "datasets", type="preferences")
            self.refer(f"{key}.heldout", reward["heldout"], "datasets", type="preferences")
            heldout, trained = (self.config["datasets"].get(reward[role]) for role in ("heldout", "dataset"))
            if heldout and trained and overlap(heldout, trained):
                text = f"shares prompts with the training set {reward['dataset']!r}"
                self.found.add(f"{key}.heldout", reward["heldout"], text, "hold out another split or part.")

    def _data(self) -> None:
        for name, block in self.config["datasets"].items():
            if block["kind"] == "world" and (block["split"] == "sft") != (block["type"] == "conversations"):
                text, hint = f"does not hold {block['type']}", "conversations are in sft, preferences in the others."
                self.found.add(f"datasets.{name}.split", block["split"], text, hint)
        for name, block in self.config["bases"].items():
            template = block.get("chat_template")
            if template is not None and not (TEMPLATES / template).is_file():
                known = sorted(path.name for path in TEMPLATES.glob("*.jinja"))
                self.found.unknown(f"bases.{name}.chat_template", template, "no such file in config/templates", known)
        for name, block in self.config["prompts"].items():
            if block["kind"] == "hub":
                self._revisions(f"prompts.{name}.revision", block)
        for kind in ("datasets", "prompts"):
            for name, block in self.config[kind].items():
                if "part" in block and block["part"][0] >= block["part"][1]:
                    text = "the first number must be below the second"
                    self.found.add(f"{kind}.{name}.part", block["part"], text, "[0, 0.5] is the first half.")

    def _revisions(self, key: str, block: Config) -> None:
        """One repository has one revision, several have one each."""
        several, listed = "{n}" in block["repo"], isinstance(block["revision"], list)
        if several and not listed and block["revision"] != "main":
            text = "is the commit of one repository; `repo` has {n}"
            self.found.add(key, block["revision"], text, "name a list, one commit for each iteration.")
        if listed and not several:
            self.found.add(key, block["revision"], "`repo` has no {n}", "name one commit.")

    def _samplings_and_pairings(self) -> None:
        for name, sampling in self.config["samplings"].items():
            count = len(sampling["temperatures"])
            if sampling["k"] % count:
                text = f"is not a multiple of its {count} temperatures"
                self.found.add(f"samplings.{name}.k", sampling["k"], text, "K is split into equal blocks.")
        for name, pairing in self.config["pairings"].items():
            if pairing["chosen_quantile"] <= pairing["rejected_quantile"]:
                key, value = f"pairings.{name}.chosen_quantile", pairing["chosen_quantile"]
                self.found.add(key, value, "must be above rejected_quantile", "1 is the best response, 0 the worst.")

    def _evaluation(self, key: str, evaluation: Config) -> None:
        self.refer(f"{key}.prompts", evaluation["prompts"], "prompts")
        sampling = self.refer(f"{key}.sampling", evaluation["sampling"], "samplings")
        if sampling and not sampling["record_logprobs"]:
            hint = "the KL to the SFT policy needs them."
            self.found.add(f"{key}.sampling", evaluation["sampling"], "must have record_logprobs: true", hint)
        for base in dict.fromkeys(self._base_of(run["sft"]) for run in self.config["runs"].values()):
            self._sampled_within(f"{key}.sampling", evaluation["sampling"], base)
        for reward in evaluation["rewards"]:
            self.refer(f"{key}.rewards", reward, "rewards")
        held = self.config["prompts"].get(evaluation["prompts"])
        for block, name in self._trained_on():
            if held and overlap(held, self.config[block][name]):
                text = f"training uses prompts of {block}.{name}, which it shares"
                self.found.add(f"{key}.prompts", evaluation["prompts"], text, "evaluate on another split or part.")

    def _trained_on(self) -> list[tuple[str, str]]:
        """(block, name) of every data set and prompt set that something trains on, each once."""
        used = [("datasets", sft.get("dataset")) for sft in self.config["sft"].values()]
        used += [("datasets", reward.get("dataset")) for reward in self.config["rewards"].values()]
        used += [("datasets", part["dataset"]) for run in self.config["runs"].values() for part in run["mix"]]
        used += [("prompts", run["prompts"]) for run in self.config["runs"].values()]
        return [(block, name) for block, name in dict.fromkeys(used) if name in self.config[block]]

    def _run(self, key: str, run: Config) -> None:
        self.refer(f"{key}.sft", run["sft"], "sft")
        prompts = self.refer(f"{key}.prompts", run["prompts"], "prompts")
        if run["prompts"] is None and (run["method"] != "dpo" or not run["mix"]):
            hint = "only a dpo run with a `mix` of curated preferences can do without."
            self.found.add(f"{key}.prompts", None, "missing", hint)
        if prompts and prompts["kind"] == "world":
            if prompts["split"] != "iteration":
                text = f"prompts.{run['prompts']}.split is {prompts['split']!r}, must be 'iteration'"
                self.found.add(f"{key}.prompts", run["prompts"], text, "the other splits are held out.")
            if run["iterations"] > WORLD_ITERATIONS:
                text = f"the world has prompts for {WORLD_ITERATIONS} iterations"
                self.found.add(f"{key}.iterations", run["iterations"], text, "lower it.")
        if prompts and prompts["kind"] == "hub" and isinstance(prompts["revision"], list):
            if run["iterations"] > len(prompts["revision"]):
                text = f"prompts.{run['prompts']}.revision is for {len(prompts['revision'])} iterations"
                self.found.add(f"{key}.iterations", run["iterations"], text, "lower it, or add revisions.")
        for i, part in enumerate(run["mix"]):
            self.refer(f"{key}.mix[{i}].dataset", part["dataset"], "datasets", type="preferences")
            self.refer(f"{key}.mix[{i}].pairing", part["pairing"], "pairings")
        for i, number in enumerate(run["keep"] if isinstance(run["keep"], list) else []):
            if number > run["iterations"]:
                text = f"the run has iterations 1 to {run['iterations']}"
                self.found.add(f"{key}.keep[{i}]", number, text, "name some of these, or say `all` or `last`.")
        self._iteration(key, run)
        for number, own in run["each"].items():
            if int(number) > run["iterations"]:
                text, hint = f"the run has iterations 1 to {run['iterations']}", f"raise {key}.iterations."
                self.found.add(f"{key}.each.{number}", None, text, hint)
            merged = {**run, **{name: value for name, value in own.items() if value is not None}}
            for method in ("dpo", "raft"):
                merged[method] = {**run[method], **(own[method] or {})}
            if any(value is not None for value in own.values()):
                self._iteration(f"{key}.each.{number}", merged, own)

    def _iteration(self, key: str, run: Config, own: Config | None = None) -> None:
        """The settings in force in an iteration; `own` are those it sets for itself, and only they are blamed."""
        method = run[run["method"]]
        sampling = None
        if run["prompts"] is not None:
            for field in ("reward", "sampling", *(["pairing"] if run["method"] == "dpo" else [])):
                if own is not None and own[field] is None:
                    continue
                if run[field] is None:
                    self.found.add(f"{key}.{field}", None, "missing", f"name one of {field}s.")
                else:
                    self.refer(f"{key}.{field}", run[field], f"{field}s")
            sampling = self.config["samplings"].get(run["sampling"])
        if sampling and (own is None or own["sampling"] is not None):
            self._sampled_within(f"{key}.sampling", run["sampling"], self._base_of(run["sft"]))
            if run["method"] == "dpo":
                self._two_can_differ(f"{key}.sampling", run["sampling"], sampling)
        if own is None or own["sampling"] is not None or own[run["method"]]:
            needed = sampling["max_prompt_tokens"] + sampling["max_new_tokens"] if sampling else 0
            if method["max_length"] < needed:
                text = f"prompts and responses have up to {needed} tokens"
                hint = f"raise it, or lower max_prompt_tokens or max_new_tokens of samplings.{run['sampling']}."
                self.found.add(f"{key}.{run['method']}.max_length", method["max_length"], text, hint)
        if own is None or own[run["method"]]:
            self._trained_within(f"{key}.{run['method']}", method, self._base_of(run["sft"]))
            self._batch(f"{key}.{run['method']}", method["batch_size"], f"train_{run['method']}")
            self._adapters(f"{key}.{run['method']}", method["lora"], f"train_{run['method']}")
        if own is None or own["dpo"]:
            weights, losses = run["dpo"]["loss_weights"], run["dpo"]["loss"]
            if weights is not None and len(weights) != len(losses):
                self.found.add(
                    f"{key}.dpo.loss_weights", weights, "must fit `loss`", f"one number for each of {losses}."
                )
            smoothing = run["dpo"]["label_smoothing"]
            if "exo_pair" in losses and smoothing == 0:
                self.found.add(f"{key}.dpo.label_smoothing", 0, "exo_pair needs more than 0", "its paper uses 0.001.")
            if smoothing > 0 and not SMOOTHED_LOSSES & set(losses):
                text, hint = f"none of {losses} uses it", f"only {', '.join(sorted(SMOOTHED_LOSSES))} do in TRL."
                self.found.add(f"{key}.dpo.label_smoothing", smoothing, text, hint)

    def _two_can_differ(self, key: str, name: str, sampling: Config) -> None:
        """A pair takes two responses, and greedy ones to one prompt are the same."""
        if sampling["k"] < 2:
            text = f"draws {sampling['k']} response to a prompt, and dpo makes pairs of two"
            self.found.add(key, name, text, f"raise samplings.{name}.k, or set method to raft.")
        elif not any(sampling["temperatures"]):
            text = "draws greedily only, so all responses to a prompt are the same and make no pair"
            self.found.add(key, name, text, f"give samplings.{name}.temperatures one above 0.")

    def _base_of(self, sft: str) -> str | None:
        """The base of an SFT policy; None where a reference to it is wrong, which is said elsewhere."""
        name: str | None = self.config["sft"].get(sft, {}).get("base")
        return name

    def _positions(self, base: str | None) -> int | None:
        """The longest sequence that a base is made for, where its `shape` says so."""
        shape = self.config["bases"].get(base, {}).get("shape") or {}
        positions: int | None = shape.get("positions")
        return positions

    def _trained_within(self, key: str, block: Config, base: str | None) -> None:
        """Rows that are trained on are no longer than the model is made for."""
        positions = self._positions(base)
        if positions is not None and block.get("max_length", 0) > positions:
            text = f"bases.{base}.shape.positions is {positions}"
            self.found.add(f"{key}.max_length", block["max_length"], text, "lower it: longer rows are dropped.")

    def _sampled_within(self, key: str, name: str, base: str | None) -> None:
        """Prompt and response together are no longer than the model is made for."""
        sampling, positions = self.config["samplings"].get(name), self._positions(base)
        if sampling is None or positions is None:
            return
        needed = sampling["max_prompt_tokens"] + sampling["max_new_tokens"]
        if needed > positions:
            text = f"prompts and responses have up to {needed} tokens, and bases.{base}.shape.positions is {positions}"
            self.found.add(key, name, text, f"lower max_prompt_tokens or max_new_tokens of samplings.{name}.")

    def _resources(self) -> None:
        """A process trains or scores on one GPU; only an engine that samples spreads over several."""
        for rule in cluster.ON_GPU:
            needed = cluster.needs(self.config, rule)
            gpus, processes = needed["gpus"], needed["processes"]
            if rule in cluster.TRAINING and gpus and processes != gpus:
                text, hint = f"is not its {gpus} GPUs on a node", "leave `processes` out: one for each GPU."
                self.found.add(f"resources.{rule}.processes", processes, text, hint)
            elif rule == "sample_rollouts" and gpus not in (0, self.config["runtime"]["vllm_tensor_parallel"]):
                spread = self.config["runtime"]["vllm_tensor_parallel"]
                text = f"an engine spreads over runtime.vllm_tensor_parallel = {spread}"
                self.found.add(f"resources.{rule}.gpus", gpus, text, "leave it out; shards run side by side.")
            elif rule not in (*cluster.TRAINING, "sample_rollouts") and gpus > 1:
                text = "this step uses one GPU"
                self.found.add(f"resources.{rule}.gpus", gpus, text, "ask for one; shards run side by side.")
            if rule not in cluster.TRAINING and "strategy" in self.config["resources"].get(rule, {}):
                hint = f"leave it out; {', '.join(cluster.TRAINING)} can share a model."
                self.found.add(f"resources.{rule}.strategy", needed["strategy"], "this step takes one process", hint)

    def _adapters(self, key: str, lora: Config | None, rule: str) -> None:
        """DeepSpeed shares out float weights; those in 4 bits stay whole, and every process has to hold them."""
        strategy = cluster.needs(self.config, rule)["strategy"]
        if lora and lora["quantization"] and strategy != "data":
            text, hint = f"excludes strategy {strategy} of {rule}", f"set resources.{rule}.strategy to data."
            self.found.add(f"{key}.lora.quantization", lora["quantization"], text, hint)
        if lora and "all-linear" in lora["targets"] and len(lora["targets"]) > 1:
            text, hint = "all-linear stands for all of them", "name it alone, or name layers."
            self.found.add(f"{key}.lora.targets", lora["targets"], text, hint)

    def _batch(self, key: str, batch: int, rule: str) -> None:
        """Processes and micro-batch must divide every batch: the rest is gradient accumulation."""
        processes = cluster.world(self.config, rule)
        if batch % processes:
            text = f"does not divide among the {processes} processes of {rule}"
            self.found.add(f"{key}.batch_size", batch, text, f"choose a multiple of {processes}, or other `resources`.")
            return
        micro = min(self.config["runtime"]["train_micro_batch"], batch // processes)
        if batch // processes % micro:
            share = f" / {processes} processes" if processes > 1 else ""
            text, hint = f"does not divide {key}.batch_size = {batch}{share}", "choose a divisor of every batch size."
            self.found.add("runtime.train_micro_batch", micro, text, hint)
