"""The mutation table: what is changed in a finished build, and exactly which jobs that must plan."""

from dataclasses import dataclass
from pathlib import Path

from tests.rebuild.conftest import FILES
from tests.rebuild.edits import (
    Change,
    age,
    append,
    append_to_each,
    both,
    config,
    delete,
    forget_times,
    move,
    replace,
    reversed_keys,
    touch,
    without,
)  # fmt: skip
from tests.rebuild.graph import (
    AT_ONCE,
    BASE,
    EVERYTHING,
    GRAPH,
    POLICIES,
    REPORT,
    SFT,
    above,
    below,
    data,
    dpo,
    evaluation,
    of,
    pairs,
    prompts,
    raft,
    reference,
    reward,
    sample,
    score,
    select,
)  # fmt: skip

NOTHING: set[str] = set()
ROOT = "results/tiny"
FOLDER = Path(__file__).resolve().parents[2]
SFT_POLICY = POLICIES[SFT]


@dataclass(frozen=True)
class Mutation:
    """A change, as an edit of a copy of the build, an overlay over its config, or options; and the jobs it plans."""

    wanted: set[str]
    change: Change | None = None
    overlay: str = ""
    options: tuple[str, ...] = ()
    target: str = "all"


TABLE: dict[str, Mutation] = {}


def edits(wanted: set[str], named: dict[str, Change]) -> None:
    """Changes of files that all plan the same."""
    assert not TABLE.keys() & named.keys()
    for name, change in named.items():
        TABLE[name] = Mutation(wanted, change)


def overlays(wanted: set[str], named: dict[str, str]) -> None:
    """Overlays that all plan the same."""
    assert not TABLE.keys() & named.keys()
    for name, overlay in named.items():
        TABLE[name] = Mutation(wanted, overlay=overlay)


# Text that means nothing


def meaningless(name: str, file: str) -> dict[str, Change]:
    """Edits of a Python file that change no meaning."""
    return {
        f"a comment in {name}": replace(file, "\ndef ", "\n# A comment.\ndef ", 1),
        f"a docstring in {name}": replace(file, '"""', '"""In other words: ', 1),
        f"blank lines in {name}": replace(file, "\n\n\ndef ", "\n\n\n\n\ndef "),
        f"format in {name}": replace(file, ") -> ", "\n) -> ", 1),
        f"{name} touched": touch(file),
    }


edits(
    NOTHING,
    meaningless("a script", "scripts/train_dpo.py")
    | meaningless("a helper", "scripts/lib/data/seeds.py")
    | meaningless("a helper of nearly all", "scripts/lib/data/tables.py")
    | {
        "a comment in a rule": replace("rules/policy.smk", "    output:\n", "    # A comment.\n    output:\n"),
        "a docstring in a rule file": replace("rules/policy.smk", '"""Policies', '"""The policies'),
        "blank lines in a rule file": replace("rules/policy.smk", "\n\n\nuse ", "\n\n\n\n\nuse "),
        "format in a rule": replace("rules/stage.smk", "priority: priority", "priority:\n        priority"),
        "white space in a shell line": replace("rules/stage.smk", '" --runtime', '"   --runtime'),
        "a comment in the Snakefile": replace("Snakefile", "\npathvars:", "\n# A comment.\npathvars:"),
        "blank lines in the Snakefile": replace("Snakefile", "\n\n\n", "\n\n\n\n\n"),
        "rules in another order": both(
            replace("Snakefile", 'include: "rules/pairs.smk"\n', ""),
            replace(
                "Snakefile", 'include: "rules/sft.smk"\n', 'include: "rules/pairs.smk"\ninclude: "rules/sft.smk"\n'
            ),
        ),
        "a log path": replace("rules/policy.smk", "{n}/policy.log", "{n}/training.log"),
        "threads in a rule": replace("rules/stage.smk", "threads: threads", "threads: 1"),
        "priority in a rule": replace("rules/stage.smk", "priority: priority", "priority: 3"),
        "resources in a rule": replace(
            "rules/stage.smk", "**{name: resource(name) for name in cluster.RESOURCES}", "mem_mb=9"
        ),
        "an environment file": replace("envs/train.yaml", "\n", "\n# A comment.\n", 1),
        "cores in the profile": replace("profiles/default/config.yaml", "cores: all", "cores: 1"),
        "a comment in the config": append("config/config.yaml", "# A comment.\n"),
        "what a key means": replace("scripts/lib/kinds/sampling.py", "Responses per prompt.", "Responses to a prompt."),
        "all scripts and rules touched": touch("Snakefile", "rules/*", "scripts/**/*.py", "config/*"),
        "a helper that nothing uses": append("scripts/lib/data/unused.py", "X = 1\n"),
        "a script that nothing runs": append("scripts/adopt_sft.py", "CHANGED = 1\n"),
    },
)
# Options of the command

TABLE["a profile for a cluster"] = Mutation(NOTHING, options=("--profile", "slurm"))
TABLE["a profile for several GPUs"] = Mutation(NOTHING, options=("--profile", "profiles/gpu"))

for option in (
    "--cores 1", "--keep-going", "--scheduler ilp",
    "--set-threads train_dpo=2", "--resources mem_mb=100", "--set-resources train_dpo:mem_mb=10",
    "--benchmark-extended", "--config run=offline", "--config run=raft",
):  # fmt: skip
    TABLE[option] = Mutation(NOTHING, options=tuple(option.split()))

# Scripts: the stage and everything below

for rule in sorted({job.split()[0] for job in GRAPH}):
    TABLE[f"scripts/{rule}.py"] = Mutation(below(*of(rule)), append(f"scripts/{rule}.py", "CHANGED = 1\n"))

# Rooms that no digest covers: planning decides no bytes, and plumbing that does must raise FORMAT, as here. What stands
# in kinds is recorded, value by value, as settings.

edits(NOTHING, {
    f"every module of {room}": append_to_each(f"scripts/lib/{room}/**/*.py", text="CHANGED = 1\n")
    for room in ("planning", "stage", "kinds")
})  # fmt: skip
edits(EVERYTHING, {"FORMAT": replace("scripts/lib/stage/digest.py", "\nFORMAT = 1\n", "\nFORMAT = 2\n")})

# Helpers: the stages that import them, themselves or through others, and everything below

TRAININGS = "train_sft train_reward train_dpo train_raft"
WITH_TABLES = (
    "curate_data make_prompts train_sft train_reward sample_rollouts score_rollouts verify_rollouts score_logprobs "
    "build_pairs select_pairs score_reference train_dpo train_raft evaluate build_report"
)
BY_HELPER = {
    "data/columns": WITH_TABLES,
    "data/gates": f"make_base {TRAININGS} build_pairs evaluate build_report",
    "data/licences": "curate_data make_prompts",
    "data/responses": "build_pairs train_raft",
    "data/engine_gap": "train_dpo train_raft",
    "data/rewards": "score_rollouts verify_rollouts build_pairs train_raft",
    "data/seeds": "sample_rollouts build_pairs train_dpo",
    "data/shapes": f"make_base {TRAININGS} sample_rollouts score_rollouts score_logprobs score_reference",
    "data/sources": "curate_data make_prompts",
    "data/stats": "evaluate build_report",
    "data/files": "curate_data make_prompts",
    "data/examples": "curate_data make_prompts",
    "data/curation": "curate_data make_prompts",
    "data/tables": WITH_TABLES,
    "data/world": "make_base curate_data make_prompts verify_rollouts",
    "data/schemas/conversations": "curate_data train_sft",
    "data/schemas/engine_check": "train_dpo train_raft evaluate",
    "data/schemas/evaluation": "evaluate build_report",
    "data/schemas/logprobs": "score_logprobs evaluate",
    "data/schemas/pairs": "build_pairs select_pairs score_reference train_dpo",
    "data/schemas/preferences": "curate_data train_reward select_pairs",
    "data/schemas/prompts": "make_prompts sample_rollouts",
    "data/schemas/reference": "score_reference train_dpo",
    "data/schemas/rewards": "score_rollouts verify_rollouts build_pairs train_raft evaluate",
    "data/schemas/rollouts": "sample_rollouts score_rollouts verify_rollouts score_logprobs build_pairs "
    "train_raft evaluate",
    "models/accumulation": TRAININGS,
    "models/chat": f"make_base {TRAININGS} sample_rollouts score_rollouts score_reference",
    "models/forward": "train_reward sample_rollouts score_rollouts score_logprobs score_reference train_dpo",
    "models/generation": "sample_rollouts",
    "models/loading": f"make_base {TRAININGS} sample_rollouts score_rollouts score_logprobs score_reference",
    "models/lora": f"make_base {TRAININGS}",
    "models/policy": "train_sft train_dpo train_raft",
    "models/reference": "train_dpo",
    "models/rows": TRAININGS,
    "models/scoring": "score_rollouts score_logprobs score_reference",
    "models/sft": "train_sft train_raft",
    "models/sharding": f"make_base {TRAININGS}",
    "models/training": f"make_base {TRAININGS}",
    **{f"report/{path.stem}": "build_report" for path in sorted((FOLDER / "scripts/lib/report").glob("[a-z]*.py"))},
    # Members of families: the stages whose settings choose them.
    "models/engines/transformers": "sample_rollouts",
    "labels/bt": "score_rollouts",
    "labels/world_gold": "verify_rollouts",
    "benchmarks/rewards": "evaluate",
}


def using(rules: str) -> set[str]:
    """The jobs of these rules and everything below."""
    return below(*(job for rule in rules.split() for job in of(rule)))


for helper, rules in BY_HELPER.items():
    TABLE[f"scripts/lib/{helper}.py"] = Mutation(using(rules), append(f"scripts/lib/{helper}.py", "CHANGED = 1\n"))

edits(below(REPORT), {"a template of the report": append("scripts/lib/report/templates/style.css", "p {}\n")})

# A new member of a family is a new file, which nobody has chosen yet.
edits(NOTHING, {
    f"a new file in {family}": append(f"scripts/lib/{family}/another.py", "X = 1\n")
    for family in ("data/adapters", "models/engines", "labels", "benchmarks")
})  # fmt: skip

# What another engine needs, and what checks it, are no matter of this preset's samplings.
for other in ("scripts/lib/models/engines/vllm.py", "scripts/lib/models/compile_cache.py", "scripts/check_engine.py"):
    TABLE[other] = Mutation(NOTHING, append(other, "CHANGED = 1\n"))
TABLE["another vllm"] = Mutation(NOTHING, replace("envs/requirements-rollout.txt", "\nvllm==", "\nvllm==9."))
# Neither are models, data and policies from elsewhere, nor tools that a person starts.
NOT_RUN = {
    *(f"scripts/{stage}.py" for stage in ("adopt_sft", "convert_base", "fetch_base", "fetch_data")),
    *(f"scripts/{tool}.py" for tool in ("audit_results", "build_in_phases", "check_site", "lineage")),
    *(f"scripts/{tool}.py" for tool in ("prune_weights", "show_plan", "verify_results", "write_reference")),
    "scripts/lib/data/hub.py",
    "scripts/lib/data/packages.py",
    *(f"scripts/lib/data/adapters/{name}.py" for name in ("auto", "general", "nectar")),
}
edits(NOTHING, {"everything that this preset does not run": append_to_each(*sorted(NOT_RUN), text="CHANGED = 1\n")})

# Pins: the stages that import the package, and everything below

PINS = "envs/requirements-train.txt"
for package, rules in {
    "trl": BY_HELPER["models/training"],
    "peft": BY_HELPER["models/lora"],
    "deepspeed": "",
    "torch": BY_HELPER["models/loading"],
    "transformers": BY_HELPER["models/loading"],
    "polars": "",
    "snakemake": "",
}.items():
    changed = using(rules) if rules else NOTHING
    TABLE[f"another {package}"] = Mutation(changed, replace(PINS, f"\n{package}==", f"\n{package}==9."))

edits(
    below(*of("build_pairs")),
    {
        "a constant in a script": replace("scripts/build_pairs.py", '"max_min"', '"min_max"'),
        "an import": replace("scripts/build_pairs.py", "import sys\n", "import string\nimport sys\n"),
        "a helper that one script begins to use": both(
            append("scripts/lib/data/unused.py", "X = 1\n"),
            replace(
                "scripts/build_pairs.py",
                "from scripts.lib.data.seeds",
                "from scripts.lib.data.unused import X\nfrom scripts.lib.data.seeds",
            ),
        ),
        "an edit with an old file time": both(
            append("scripts/build_pairs.py", "CHANGED = 1\n"), age("scripts/build_pairs.py")
        ),
    },
)

# Settings that are the same, or that nothing reads

overlays(
    NOTHING,
    {
        "4e-4 as 0.0004": "runs: {main: {dpo: {learning_rate: 0.0004}}}",
        "1 as 1.0": "runs: {main: {dpo: {epochs: 1.0}}}",
        "8 as 8.0": "samplings: {best_of_8: {k: 8.0}}",
        "1 as 1.0 in a list": "samplings: {evaluation: {temperatures: [0.0, 1.0, 1, 1.0]}}",
        "a default written out": "runs: {offline: {dpo: {label_smoothing: 0, loss: [sigmoid]}}}",
        "a data set that nothing uses": "datasets: {spare: {kind: world, type: conversations, split: sft, size: 9}}",
        "a prompt set that nothing uses": "prompts: {spare: {kind: world, split: validation, size: 9}}",
        "a base that nothing uses": "bases: {spare: {kind: world}}",
        "an SFT policy that nothing uses": "sft: {spare: {kind: adopt, base: world}}",
        "a sampling that nothing uses": "samplings: {best_of_8_mixed: {k: 4, max_new_tokens: 32}}",
        "a pairing that nothing uses": "pairings: {spare: {strategy: max_max}}",
        "a reward that nothing uses": "rewards: {spare: {kind: bt, init: sft/tiny, dataset: annotations, "
        "heldout: annotations_heldout, max_length: 128}}",
        "RAFT settings of a DPO run": "runs: {main: {raft: {learning_rate: 1e-5}}}",
        "a strategy for curated pairs": "pairings: {as_given: {strategy: max_max}}",
        "runtime.device": "runtime: {device: cuda}",
        "runtime.torch_threads": "runtime: {torch_threads: 2}",
        "runtime.train_micro_batch": "runtime: {train_micro_batch: 16}",
        "runtime.generate_batch": "runtime: {generate_batch: 64}",
        "runtime.vllm_memory": "runtime: {vllm_memory: 0.5}",
        "runtime.vllm_cpu_cache_gib": "runtime: {vllm_cpu_cache_gib: 9}",
        "runtime.rollout_python": "runtime: {rollout_python: /elsewhere/python}",
        "runtime.shards_per_engine": "runtime: {shards_per_engine: 4}",
        "runtime.engine_tolerance": "runtime: {engine_tolerance: 0.1}",
        "responses that vllm alone is checked by": "samplings: {best_of_8: {check_responses: 8}}",
        "runtime.vllm_tensor_parallel": "runtime: {vllm_tensor_parallel: 2}",
        "runtime.score_tokens": "runtime: {score_tokens: 999}",
        "runtime.checkpoint_minutes": "runtime: {checkpoint_minutes: 0}",
        "which weights are kept": "runs: {main: {keep: last}}",
        "runtime.gradient_checkpointing": "runtime: {gradient_checkpointing: true}",
        "runtime.attention": "runtime: {attention: eager}",
        "runtime.trackers": "runtime: {trackers: [wandb]}",
        "how processes share a model": "resources: {train_dpo: {strategy: zero3}, default: {strategy: zero2}}",
        "resources of every step": "resources: {default: {mem_mb: 9000, threads: 2, runtime: 9}}",
        "processes of a step": "resources: {train_dpo: {nodes: 2, processes: 4}}",
    },
)
edits(NOTHING, {"the keys of the config in another order": config(reversed_keys)})
TABLE["results moved to another folder"] = Mutation(
    NOTHING, move("results/tiny", "elsewhere/of/results"), overlay="results: elsewhere/of/results"
)

# Settings of the trainings

overlays(
    below(BASE), {"dtype": "dtype: bfloat16", "learning rate of the base": "bases: {world: {learning_rate: 1e-3}}"}
)
overlays(EVERYTHING, {"the seed": "seed: 3"})
overlays(below(SFT_POLICY), {
    "learning rate of SFT": "sft: {tiny: {learning_rate: 5e-4}}",
    "seed of SFT": "sft: {tiny: {seed: 7}}",
    "longest conversation of SFT": "sft: {tiny: {max_length: 96}}",
})  # fmt: skip
overlays(below(reward()), {
    "learning rate of the reward model": "rewards: {bt: {learning_rate: 5e-4}}",
    "what the reward model starts from": "rewards: {bt: {init: base/world}}",
    "the reward model's two data sets swapped": "rewards: {bt: {dataset: annotations_heldout, heldout: annotations}}",
})  # fmt: skip
overlays(below(dpo("main", 1)), {
    "beta of one run": "runs: {main: {dpo: {beta: 0.2}}}",
    "loss": "runs: {main: {dpo: {loss: [ipo], loss_weights: null}}}",
    "two losses": "runs: {main: {dpo: {loss: [sigmoid, sft], loss_weights: [1, 0.1]}}}",
    "seed of DPO": "runs: {main: {dpo: {seed: 7}}}",
    "curated pairs mixed in": "runs: {main: {mix: [{dataset: annotations, pairing: as_given, weight: 0.5}]}}",
})  # fmt: skip
overlays(below(dpo("main", 1), dpo("once", 1), dpo("offline", 1)), {
    "beta of all runs": "runs: {main: {dpo: {beta: 0.2}}, once: {dpo: {beta: 0.2}}, offline: {dpo: {beta: 0.2}}}",
})  # fmt: skip
overlays(below(dpo("main", 2)), {
    "learning rate of iteration 2": "runs: {main: {each: {2: {dpo: {learning_rate: 1e-4}}}}}",
    "training on all pairs so far": "runs: {main: {train_on: all}}",
    "every iteration starts from SFT": "runs: {main: {start: sft}}",
})  # fmt: skip
overlays(below(raft(1)), {"learning rate of RAFT": "runs: {raft: {raft: {learning_rate: 1e-4}}}"})
overlays(
    below(dpo("offline", 1)),
    {"weight of a mix": "runs: {offline: {mix: [{dataset: annotations, pairing: as_given, weight: 0.5}]}}"},
)
overlays(
    below(dpo("main", 2)) - {reference("runs/main/iter1", 2), reference("runs/main/iter2", 3)}
    | {reference("runs/main/iter1", 2, "runs/main/iter1"), reference("runs/main/iter2", 3, "runs/main/iter2")},
    {"the reference is the previous policy": "runs: {main: {reference: previous}}"},
)

TABLE["an overlay that names another run leaves the targets with the chosen one"] = Mutation(
    NOTHING, overlay="runs: {raft: {raft: {learning_rate: 1e-4}}}", target="iter3_policy"
)

# Settings of the data

overlays(below(data("demonstrations")), {"size of the demonstrations": "datasets: {demonstrations: {size: 1900}}"})
overlays(below(data("annotations")), {"seed of the annotations": "datasets: {annotations: {seed: 7}}"})
overlays(below(select("as_given")), {"number of curated pairs": "pairings: {as_given: {size: 900}}"})
overlays(below(prompts("requests-1"), prompts("requests-2"), prompts("requests-3")), {
    "size of the prompt sets": "prompts: {requests: {size: 400}}",
    "seed of the prompt sets": "prompts: {requests: {seed: 7}}",
})  # fmt: skip
overlays(below(prompts(f"{AT_ONCE}-1")), {"size of one run's prompt set": "prompts: {all_requests: {size: 2000}}"})

# Settings of the rollouts and of the pairs

FIRST_ROLLOUTS = sample(SFT, 1)
SAMPLED = below(FIRST_ROLLOUTS, sample(SFT, 1, asked=AT_ONCE))
overlays(SAMPLED, {
    "K": "samplings: {best_of_8: {k: 4}}",
    "temperature": "samplings: {best_of_8: {temperatures: [0.7]}}",
    "longest response": "samplings: {best_of_8: {max_new_tokens: 24}}",
    "seed of the sampling": "samplings: {best_of_8: {seed: 7}}",
})  # fmt: skip
CHECKS = {
    f"check_engine results/tiny/{policy}/rollouts/best_of_8/requests-{n}/engine.parquet"
    for n, policy in enumerate((SFT, "runs/main/iter1", "runs/main/iter2"), 1)
}
CHECKS |= {f"check_engine results/tiny/{SFT}/rollouts/best_of_8/{AT_ONCE}-1/engine.parquet"}
overlays(SAMPLED | CHECKS, {"engine": "samplings: {best_of_8: {engine: vllm}}"})
overlays(SAMPLED, {
    "an engine that is not checked": "samplings: {best_of_8: {engine: vllm, check_responses: 0}}",
})  # fmt: skip
overlays(below(pairs(SFT, 1), pairs(SFT, 1, AT_ONCE)), {
    "strategy of the pairs": "pairings: {best_worst: {strategy: max_max}}",
    "length penalty": "pairings: {best_worst: {length_penalty: 0.001}}",
    "least margin": "pairings: {best_worst: {minimum_margin: 0.5}}",
})  # fmt: skip
MIXED = "results/tiny/runs/main/iter1/rollouts/best_of_8_mixed/requests-2"
TABLE["another sampling in iteration 2"] = Mutation(
    below(dpo("main", 2))
    | {
        f"sample_rollouts {MIXED}/0.parquet",
        f"score_rollouts {MIXED}/rewards/bt/0.parquet",
        f"build_pairs {MIXED}/pairs/bt/best_worst.parquet",
        f"score_reference {MIXED}/pairs/bt/best_worst/reference/sft/tiny.parquet",
    },
    overlay="samplings: {best_of_8_mixed: {temperatures: [1.0, 0.7], max_prompt_tokens: 64, max_new_tokens: 32}}\n"
    "runs: {main: {each: {2: {sampling: best_of_8_mixed}}}}",
)

# Blocks of another size are other files with other rows in them: their rollouts are sampled again.
TWO_SHARDS = below(FIRST_ROLLOUTS)
TWO_SHARDS |= {job.replace("/0.parquet", "/1.parquet") for job in TWO_SHARDS if "/requests-" in job}
overlays(TWO_SHARDS, {"blocks of half the prompts": "prompts: {requests: {shard_prompts: 375}}"})
overlays(NOTHING, {"larger blocks of which one is enough as before": "prompts: {requests: {shard_prompts: 2000}}"})

# Another reward model, runs that come and go

SECOND = (
    "rewards: {second: {kind: bt, init: sft/tiny, dataset: annotations, heldout: annotations_heldout, max_length: 128}}"
)
TABLE["another reward model for one run"] = Mutation(
    {reward("second"), score(SFT, 1, "second")} | below(raft(1)),
    overlay=f"{SECOND}\nruns: {{raft: {{reward: second}}}}",
)
RUN = "sft: tiny, prompts: requests, reward: bt, sampling: best_of_8, pairing: best_worst, iterations: 1"
DPO = "learning_rate: 2e-4, epochs: 1, batch_size: 32, max_length: 128, adam_beta2: 0.98"


def sweep(*betas: int) -> str:
    """A run of one iteration for each beta, in tenths."""
    return "".join(f"  beta_{beta}: {{{RUN}, dpo: {{{DPO}, beta: 0.{beta}}}}}\n" for beta in betas)


def swept(*betas: int) -> set[str]:
    """The jobs of these runs that no other run shares: one training and its evaluation."""
    return {job for beta in betas for job in {dpo(f"beta_{beta}", 1), *evaluation(f"runs/beta_{beta}/iter1")}}


FIVE = (1, 2, 3, 4, 5)
overlays({*swept(5), REPORT, "all"}, {"a new run": f"runs:\n{sweep(5)}"})
overlays({*swept(*FIVE), REPORT, "all"}, {"five betas": f"runs:\n{sweep(*FIVE)}"})
TABLE["five betas in an empty folder"] = Mutation(
    above(pairs(SFT, 1), reference(SFT, 1)) | evaluation(SFT) | {prompts("heldout-1")} | swept(*FIVE) | {REPORT, "all"},
    both(delete("results", ".snakemake"), config(without("runs"))),
    overlay=f"run: beta_1\nruns:\n{sweep(*FIVE)}",
)
TABLE["an empty folder"] = Mutation(EVERYTHING, delete("results", ".snakemake"))
TABLE["the target iter1_policy of a new run"] = Mutation(
    {dpo("beta_5", 1), "iter1_policy"}, overlay=f"run: beta_5\nruns:\n{sweep(5)}", target="iter1_policy"
)
edits({REPORT, "all"}, {
    "another name for the preset": replace("config/config.yaml", "preset: tiny", f"preset: small\nresults: {ROOT}"),
    "a run removed": config(without("runs", "offline")),
})  # fmt: skip
overlays({REPORT, "all"}, {"iterations 3 to 2": "runs: {main: {iterations: 2}}"})
LAST = "runs/main/iter3"
FOURTH = {prompts("requests-4"), sample(LAST, 4), score(LAST, 4), pairs(LAST, 4), reference(LAST, 4), dpo("main", 4)}
FOURTH |= {*evaluation("runs/main/iter4"), REPORT, "all"}
overlays(FOURTH, {"iterations 3 to 4": "runs: {main: {iterations: 4}}"})

# Evaluation

EVALUATIONS = {*of("evaluate"), REPORT, "all"}
overlays(EVALUATIONS, {
    "confidence of the evaluation": "evaluation: {heldout: {confidence: 0.9}}",
    "resamples of the evaluation": "evaluation: {heldout: {resamples: 500}}",
    "the bound of the KL": "evaluation: {heldout: {max_kl: 20}}",
    "an evaluation that stops the build": "evaluation: {heldout: {stop_on_warnings: true}}",
    "one labeller less in the evaluation": "evaluation: {heldout: {rewards: [gold]}}",
    "the evaluation's labellers swapped": "evaluation: {heldout: {rewards: [bt, gold]}}",
})  # fmt: skip
overlays(EVALUATIONS | {reward("second")} | {score(policy, None, "second") for policy in POLICIES}, {
    "one labeller more in the evaluation": f"{SECOND}\nevaluation: {{heldout: {{rewards: [gold, bt, second]}}}}",
})  # fmt: skip
overlays({job for policy in POLICIES for job in below(sample(policy, None))}, {
    "the evaluation's temperatures in another order": "samplings: {evaluation: {temperatures: [1, 1, 1, 0]}}",
    "the evaluation's K": "samplings: {evaluation: {k: 8}}",
})  # fmt: skip
overlays(below(prompts("heldout-1")), {"size of the evaluation's prompt set": "prompts: {heldout: {size: 150}}"})
overlays({prompts("extra-1"), REPORT, "all"} | {job for policy in POLICIES for job in evaluation(policy, "extra")}, {
    "a new benchmark": "prompts: {extra: {kind: world, split: validation, size: 100}}\n"
    "evaluation: {extra: {prompts: extra, sampling: evaluation, rewards: [gold, bt]}}",
})  # fmt: skip

# Files of the build. What is gone is made again, with what lies below; weights that nothing needs stay pruned.

SHARD = f"{ROOT}/sft/tiny/rollouts/best_of_8/requests-1/0"
edits(NOTHING, {
    "every result touched": touch(f"{ROOT}/**/*.*"),
    "one table touched": touch(f"{SHARD}.parquet"),
    "all times lost": forget_times,
    "Snakemake's records lost": delete(".snakemake"),
    "weights of one policy deleted": delete(f"{ROOT}/runs/main/iter1/policy"),
    "all weights deleted": delete(f"{ROOT}/**/policy", f"{ROOT}/**/model"),
    "one log deleted": delete(f"{ROOT}/logs/runs/main/iter1/policy.log"),
    "all logs deleted": delete(f"{ROOT}/logs"),
    "one benchmark deleted": delete(f"{ROOT}/benchmarks/runs/main/iter1/policy.tsv"),
    "all benchmarks deleted": delete(f"{ROOT}/benchmarks"),
    "the volatile facts deleted": delete(f"{ROOT}/**/*.run.json"),
})  # fmt: skip
edits(below(FIRST_ROLLOUTS), {
    "a shard deleted": delete(f"{SHARD}.parquet"),
    "a shard's manifest deleted": delete(f"{SHARD}.json"),
})  # fmt: skip
edits(below(FIRST_ROLLOUTS) - {FIRST_ROLLOUTS}, {"a shard's bytes changed": append(f"{SHARD}.parquet", "more")})
edits(below(dpo("main", 1)), {
    "a policy's manifest deleted": delete(f"{ROOT}/runs/main/iter1/policy.json"),
    "a policy's digests deleted": delete(f"{ROOT}/runs/main/iter1/policy.sha256"),
})  # fmt: skip
edits(below(dpo("main", 1)) - {dpo("main", 1)}, {
    "a policy's digests changed": append(f"{ROOT}/runs/main/iter1/policy.sha256", "more"),
})  # fmt: skip
edits(below(*of("verify_rollouts")), {"the gold rewards deleted": delete(f"{ROOT}/**/rewards/gold")})
edits({REPORT, "all"}, {"the report deleted": delete(f"{ROOT}/report.html")})
edits(EVERYTHING, {
    "all manifests deleted": delete(
        *(f"{ROOT}/{place}" for place in ("base/*/*.json", "data/**/*.json", "prompts/*.json", "reward/*/*.json",
                                          "sft/**/*.json", "runs/**/*.json", "report.json"))
    ),
})  # fmt: skip
TABLE["iterations 3 to 4 without the weights of iteration 1"] = Mutation(
    FOURTH, delete(f"{ROOT}/runs/main/iter1/policy"), overlay="runs: {main: {iterations: 4}}"
)

# Local files: their bytes count and their names, which the tables cite; times and neighbours do not.

TALKING = {
    "curate_data results/tiny/data/talk.parquet",
    "train_sft results/tiny/sft/talker/policy",
    "score_reference results/tiny/data/annotations/pairs/as_given/reference/sft/talker.parquet",
    dpo("talk", 1),
    "iter1_policy",
}
MORE = append("data/talk/a.jsonl", '{"prompt": "More?", "response": "Yes."}\n')
for name, wanted, change in (
    ("a source as it was", NOTHING, None),
    ("a source touched", NOTHING, touch("data/talk/*")),
    ("a source's bytes changed", TALKING, MORE),
    ("a source's bytes changed with an old file time", TALKING, both(MORE, age("data/talk/a.jsonl"))),
    ("a source renamed", TALKING, move("data/talk/a.jsonl", "data/talk/c.jsonl")),
    ("a source deleted", TALKING, delete("data/talk/a.jsonl")),
    ("a source added", TALKING, append("data/talk/c.jsonl", '{"prompt": "More?", "response": "Yes."}\n')),
    ("a file beside the sources that the pattern leaves out", NOTHING, append("data/talk/README.txt", "About.\n")),
):
    TABLE[name] = Mutation(wanted, change, overlay=FILES, target="iter1_policy")
TABLE["the sources' folder moved"] = Mutation(
    NOTHING,
    move("data/talk", "data/other"),
    overlay=FILES.replace("data/talk", "data/other"),
    target="iter1_policy",
)
TABLE["the pattern of the sources"] = Mutation(
    TALKING, overlay=FILES.replace("*.jsonl", "a*.jsonl"), target="iter1_policy"
)
