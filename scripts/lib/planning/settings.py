"""The settings of every stage: what decides its result, and nothing else. No torch, no Snakemake.

One function for each stage, named like it. It takes the plan and the wildcards of the stage's rule, and leaves aside
those that it has no use for.
"""

from scripts.lib.data import sources
from scripts.lib.planning.checks import Config
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import ConfigError


def of(plan: Plan, stage: str, **wildcards: str) -> str:
    """One canonical JSON string with the scientific settings of a stage's job.

    One string, because Snakemake compares parameters as an unnamed set and would miss two values swapped. Raises
    ConfigError for what the configuration does not have, and for a source whose files are not there.
    """
    return canonical_json(of_stage(plan, stage, **wildcards))


def of_stage(plan: Plan, stage: str, **wildcards: str) -> Config:
    """The scientific settings of a stage's job."""
    found: Config = globals()[stage](plan, **wildcards)
    return found


def make_base(plan: Plan, base: str) -> Config:
    """A base model from random weights."""
    return {**_seeded(plan, plan.config["bases"][base], "kind"), "dtype": plan.config["dtype"]}


def convert_base(plan: Plan, base: str) -> Config:
    """A base model from a package's file or a local folder."""
    block = plan.config["bases"][base]
    if block["kind"] == "gguf":
        return {name: value for name, value in block.items() if name != "shape"} | {"dtype": plan.config["dtype"]}
    digests = sources.digest(block["path"], "*", f"bases.{base}.path")
    return {"kind": "folder", "license": block["license"], "files": digests, "dtype": plan.config["dtype"]}


def fetch_base(plan: Plan, base: str) -> Config:
    """A base model from a hub; a chat template of ours enters by its bytes too."""
    block = plan.config["bases"][base]
    own = block["chat_template"]
    template = file_sha256(sources.TEMPLATES / own) if own is not None else None
    kept = {name: value for name, value in block.items() if name not in ("kind", "shape")}
    return kept | {"chat_template_sha256": template}


def fetch_data(plan: Plan, block: str, source: str) -> Config:
    """The files of a hub that a data set or prompt set is read from; a `source` is NAME, or SET-N."""
    name, _, number = source.partition("-")
    given = plan.config[block].get(name, {"kind": None})
    if given["kind"] != "hub":
        raise ConfigError(f"{block}.{name} does not come from a hub. Hint: its kind is {given['kind']!r}.")
    return {**_at(name, given, int(number or 1)), "pattern": given["pattern"], "license": given["license"]}


def curate_data(plan: Plan, dataset: str) -> Config:
    """A data set."""
    block = plan.config["datasets"][dataset]
    if block["kind"] == "hub":
        return {name: value for name, value in block.items() if name != "rows"}
    return _source(plan, block, f"datasets.{dataset}.path")


def make_prompts(plan: Plan, prompts: str) -> Config:
    """The prompt set SET-N."""
    name, _, number = prompts.rpartition("-")
    block = plan.config["prompts"].get(name)
    if block is None:
        raise ConfigError(
            f"prompt set {name!r} is not in the config. Hint: it has {', '.join(plan.config['prompts'])}."
        )
    if block["kind"] == "hub":
        # A repository of its own is not cut into slices.
        slice_ = 1 if "{n}" in block["repo"] else int(number)
        kept = {key: value for key, value in block.items() if key != "shard_prompts"}
        return {**kept, **_at(name, block, int(number)), "number": slice_}
    return {**_source(plan, block, f"prompts.{name}.path", "shard_prompts"), "number": int(number)}


def train_sft(plan: Plan, sft: str) -> Config:
    """An SFT policy that is trained."""
    return {**_seeded(plan, plan.config["sft"][sft], "kind"), "dtype": plan.config["dtype"]}


def adopt_sft(plan: Plan, sft: str) -> Config:
    """A base model as it is."""
    return {}


def train_reward(plan: Plan, reward: str) -> Config:
    """A reward model; which table plays which role stands here too, as Snakemake would miss a swap of inputs."""
    return {**_seeded(plan, plan.config["rewards"][reward], "kind"), "dtype": plan.config["dtype"]}


def sample_rollouts(plan: Plan, policy: str, sampling: str, prompts: str, shard: str) -> Config:
    """One shard of a policy's responses."""
    name = prompts.rsplit("-", 1)[0]
    block, shards = plan.config["prompts"][name], plan.shards(prompts)
    if int(shard) not in shards:
        raise ConfigError(
            f"prompt set {prompts!r} has shards 0 to {shards[-1]}; there is no shard {shard}. "
            f"Hint: size and shard_prompts of prompts.{name} decide."
        )
    # The rows, not the block's size: another size that leaves a shard its rows samples nothing again.
    first = int(shard) * block["shard_prompts"]
    rows = {"first": first, "prompts": min(block["shard_prompts"], block["size"] - first)}
    # The trainer's own library is held against nothing, and where all log-probabilities are kept no number counts.
    needless = plan.engine(sampling) == "transformers" or plan.config["samplings"][sampling]["record_logprobs"]
    without = ["check_responses"] if needless else []
    return {**_seeded(plan, plan.config["samplings"][sampling], *without), **rows, "dtype": plan.config["dtype"]}


def check_engine(plan: Plan, **_: str) -> Config:
    """The engine that sampled against the trainer."""
    return {"dtype": plan.config["dtype"]}


def score_rollouts(plan: Plan, reward: str, **_: str) -> Config:
    """Rewards by a model."""
    return {"labeller": plan.config["rewards"][reward]["kind"], "dtype": plan.config["dtype"]}


def verify_rollouts(plan: Plan, reward: str, **_: str) -> Config:
    """Rewards by a rule."""
    return {"verifier": plan.config["rewards"][reward]["verifier"]}


def score_logprobs(plan: Plan, **_: str) -> Config:
    """Log-probabilities under another policy."""
    return {"dtype": plan.config["dtype"]}


def build_pairs(plan: Plan, pairing: str, **_: str) -> Config:
    """Pairs of a policy's own responses."""
    return _seeded(plan, plan.config["pairings"][pairing])


def select_pairs(plan: Plan, pairing: str, **_: str) -> Config:
    """Curated pairs."""
    block = plan.config["pairings"][pairing]
    return {"size": block["size"], "minimum_margin": block["minimum_margin"]}


def score_reference(plan: Plan, quantized: str, **_: str) -> Config:
    """Reference log-probabilities of pairs; a run that trains on 4-bit weights has its reference in 4 bits too."""
    return {"dtype": plan.config["dtype"], "quantization": "nf4" if quantized else None}


def train_dpo(plan: Plan, run: str, n: str) -> Config:
    """One DPO step; its tables stand here with their weights, in order, for the same reason as in train_reward."""
    parts = plan.pair_sources(run, int(n))
    own = {
        "start": plan.start(run, int(n)),
        "reference": plan.reference(run, int(n)),
        "sources": [[part.pairs.removeprefix(plan.root + "/"), part.weight] for part in parts],
        "dtype": plan.config["dtype"],
    }
    return {**_seeded(plan, plan.run(run, int(n))["dpo"]), **own}


def train_raft(plan: Plan, run: str, n: str) -> Config:
    """One RAFT step."""
    return {**_seeded(plan, plan.run(run, int(n))["raft"]), "dtype": plan.config["dtype"]}


def evaluate(plan: Plan, benchmark: str, **_: str) -> Config:
    """One policy on held-out prompts."""
    return _seeded(plan, plan.config["evaluation"][benchmark], "prompts", "sampling")


def build_report(plan: Plan) -> Config:
    """The report. Runs stand longest first, then by name: the order of keys in a configuration means nothing."""
    runs = plan.config["runs"]
    names = sorted(runs, key=lambda name: (-runs[name]["iterations"], name))
    return {
        "preset": plan.config["preset"],
        "runs": [[name, runs[name]["method"], plan.policies([name])] for name in names],
        "benchmarks": {name: block["rewards"] for name, block in plan.config["evaluation"].items()},
    }


def _seeded(plan: Plan, block: Config, *without: str) -> Config:
    """A block with its own seed, or the configuration's, in place."""
    own = block.get("seed")
    kept = {key: value for key, value in block.items() if key not in without}
    return {**kept, "seed": int(plan.config["seed"] if own is None else own)}


def _at(name: str, block: Config, number: int) -> Config:
    """Repository and revision of a hub's source; `number` is N of SET-N."""
    revision = block["revision"]
    if isinstance(revision, list):
        if number > len(revision):
            raise ConfigError(
                f"prompts.{name}.revision names {len(revision)} revisions; there is none for SET-{number}. "
                "Hint: add it."
            )
        revision = revision[number - 1]
    return {"repo": block["repo"].replace("{n}", str(number)), "revision": revision}


def _source(plan: Plan, block: Config, key: str, *without: str) -> Config:
    """A block that is made by the world, or read from files: then their bytes count and not their place."""
    if block["kind"] == "world":
        return _seeded(plan, block, *without)
    kept = {name: value for name, value in block.items() if name not in (*without, "path")}
    return {**kept, "files": sources.digest(block["path"], block["pattern"], key)}
