# Ouroboros: online iterative RLHF as a build. Every artifact is a file with a name, beneath what it came from:
#
#   {results}/base/{base}/model/                                   base model       (+ model.json, model.sha256)
#   {results}/source/{block}/{source}/files/                       files of a hub   (+ files.json, files.sha256)
#   {results}/data/{dataset}.parquet                               conversations or preferences
#   {results}/data/{dataset}/pairs/{pairing}.parquet               curated pairs, selected
#   {results}/prompts/{prompts}.parquet                            a prompt set, SET-N
#   {results}/reward/{reward}/model/                               reward model     (+ model.json, model.sha256)
#   {results}/{policy}/policy/                                     policy           (+ policy.json, policy.sha256)
#   {results}/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet
#       …/engine.parquet                                           the engine's log-probabilities against the trainer's
#       …/rewards/{reward}/{shard}.parquet                         rewards of these rollouts
#       …/logprobs/{scorer}/{shard}.parquet                        their log-probabilities under another policy
#       …/pairs/{reward}/{pairing}.parquet                         preference pairs made from them
#       …/pairs/{reward}/{pairing}/reference/{scorer}.parquet      reference log-probabilities of the pairs; those under
#                                                                  a scorer in 4 bits in reference/nf4/{scorer}.parquet
#   {results}/{policy}/eval/{benchmark}.parquet                    evaluation, per response; metrics in .json
#   {results}/report.html                                          the report
#   {results}/logs/…, {results}/benchmarks/…                       the same tails
#
#   policy, scorer = sft/NAME | runs/NAME/iterN      NAME = [a-z0-9_]+      prompts = NAME-N
#   block/source = datasets/NAME | prompts/NAME | prompts/NAME-N
#
# Beside every table X.parquet and every folder X/ stand X.json (what made it) and X.run.json (when, where, how long).
import sys

from scripts.lib.planning import config as configuration, paths, plan
from scripts.lib.stage import errors

if "preset" not in config and "extends" not in config:

    configfile: "config/config.yaml"


# A job's own Snakemake reads all this again, with the same configuration: notices and the forecast are for the first.
try:
    PLAN = plan.Plan(configuration.resolve(config, quiet=not workflow.is_main_process))
    if workflow.is_main_process:
        configuration.check_memory(PLAN.config)
except errors.ConfigError as error:
    raise WorkflowError(str(error)) from None
if workflow.is_main_process and (unpinned := PLAN.unpinned()):
    print(
        f"not pinned to a commit: {', '.join(unpinned)} (revision: main)",
        file=sys.stderr,
    )


pathvars:
    results=PLAN.root,
    logs=f"{PLAN.root}/logs",
    benchmarks=f"{PLAN.root}/benchmarks",


wildcard_constraints:
    **paths.WILDCARDS,


rule all:
    default_target: True
    input:
        lambda wildcards: PLAN.target("all"),


include: "rules/common.smk"
include: "rules/stage.smk"
include: "rules/data.smk"
include: "rules/base.smk"
include: "rules/sft.smk"
include: "rules/reward.smk"
include: "rules/rollouts.smk"
include: "rules/pairs.smk"
include: "rules/policy.smk"
include: "rules/evaluation.smk"
include: "rules/upkeep.smk"
include: "rules/targets.smk"


planned(wiring.check, PLAN, wired())


# What is planned may be looked at without any environment; a build is refused before its first job.
if workflow.is_main_process:
    for line in unready(PLAN.artifacts(*PLAN.asked("all"))):
        print(f"not ready for all steps: {line}", file=sys.stderr)


onsuccess:
    tell_warnings()


onerror:
    tell_warnings()


onstart:
    if not workflow.touch:
        planned(
            ready,
            [job.output[0] for job in workflow.dag.needrun_jobs() if job.output],
        )
