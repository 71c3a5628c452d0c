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
import atexit
import os
import sys

from snakemake import cli

from scripts.lib.planning import command_line, environment, failures, given
from scripts.lib.planning import config as configuration
from scripts.lib.planning import paths, plan, replaced, unused
from scripts.lib.stage import errors

# What we start reads and writes UTF-8, whatever the locale, and finds the interpreter that runs this.
os.environ["PYTHONUTF8"] = "1"
environment.use_own()

if "preset" not in config and "extends" not in config:

    configfile: "config/config.yaml"


class Refused(WorkflowError):
    """Shown to the person as its message, without the place in our rules that passes it on, which explains nothing."""

    __traceback__ = property(lambda self: None, lambda self, value: None)


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
if workflow.is_main_process:
    line = given.introduction(PLAN.config, said.configfiles, said.config)
    own = configuration.own(said.configfiles, said.config)
    print(line, *unused.unused(PLAN.config, own), sep="\n", file=sys.stderr)
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
if workflow.is_main_process:
    words = command_line.words()
    known = {each.name: each.has_wildcards() for each in workflow.rules}
    planned(command_line.check_targets, cli, words, PLAN, known)
    planned(present.check, PLAN, command_line.artifacts(cli, words, PLAN))


# What is planned may be looked at without any environment; a build is refused before its first job.
if workflow.is_main_process:
    for line in unready(PLAN.artifacts(*PLAN.asked("all"))):
        print(f"not ready for all steps: {line}", file=sys.stderr)


def to_be_made():
    """The artifacts that Snakemake has planned to make; a dry run counts its jobs as finished."""
    return [
        job.output[0]
        for job in workflow.dag.needrun_jobs(exclude_finished=False)
        if job.output
    ]


def end_of_dry_run():
    """Say what the build would ask for; Snakemake has no hook for a dry run, and knows late that it is one."""
    if workflow.dryrun and workflow.dag:
        replaced.show(PLAN, to_be_made())


if workflow.is_main_process:
    atexit.register(end_of_dry_run)


onstart:
    if not workflow.touch:
        planned(ready, to_be_made())
        planned(replaced.agree, PLAN, to_be_made())
        bring_back(workflow.dag.needrun_jobs())


onsuccess:
    tell_warnings()


onerror:
    tell_warnings()
    failures.show(
        (job.rule.name, log) for job in workflow.scheduler.failed for log in job.log
    )
