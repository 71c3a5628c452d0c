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
from snakemake import cli

from scripts.lib.planning import command_line, environment, paths, plan
from scripts.lib.planning import config as configuration
from scripts.lib.stage import errors

environment.prepare()

if "preset" not in config and "extends" not in config:

    configfile: "config/config.yaml"


include: "rules/refused.smk"


# A job's own Snakemake reads all this again, with the same configuration: notices and the forecast are for the first.
try:
    if workflow.is_main_process:
        said = workflow.config_settings
        command_line.check(cli, command_line.words(), said.configfiles)
    PLAN = plan.Plan(configuration.resolve(config, quiet=not workflow.is_main_process))
    if workflow.is_main_process:
        configuration.check_memory(PLAN.config)
except errors.ConfigError as error:
    raise Refused(str(error)) from None


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


include: "rules/start.smk"
