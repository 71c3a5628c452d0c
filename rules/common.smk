"""What the rules ask the plan for: inputs by role, wildcard constraints, and what a job's params are made of.

`settings` and `code` are recorded by Snakemake and decide what runs again; everything else is not recorded.
"""

import shlex
from pathlib import Path

from scripts.lib.planning import cluster, paths, wiring
from scripts.lib.planning.cards import CARDS
from scripts.lib.stage.artifact import canonical_json


def planned(question, *args, **kwargs):
    """Ask the plan; its complaints reach the person without a traceback."""
    try:
        return question(*args, **kwargs)
    except errors.ConfigError as error:
        raise Refused(str(error)) from None


class Unrecorded:
    """A param that Snakemake leaves out of its records, because it is no string: it changes how or where, never what."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text

    def __repr__(self):
        return "…"  # all that is recorded of it inside a list


RESULTS = Unrecorded(PLAN.root)

# The profile for a cluster names a file with what only the site knows; without one, steps run on this machine.
SAID = workflow.resource_settings.default_resources
NAMED = dict(said.split("=", 1) for said in SAID.args) if SAID else {}
CONDA = any(
    method.name == "CONDA" for method in workflow.deployment_settings.deployment_method
)
SITE = None
if "site" in NAMED:
    SITE = planned(cluster.read_site, Path(workflow.basedir) / NAMED["site"], CONDA)
    planned(cluster.use_scratch, SITE)


# Of a rule: what it reads, and which values of its wildcards are its own


def inputs(stage):
    """Input function: what a stage's card reads, by role.

    A folder is `ancient` and comes with its digests, which are the dependency: the same bytes made again, or weights
    that were pruned, run nothing.
    """

    def of_job(wildcards):
        roles = {}
        for role, read in planned(PLAN.roles, stage, wildcards).items():
            listed = [read] if isinstance(read, str) else read
            folders = [path for path in listed if paths.is_folder(path)]
            given = [ancient(path) if path in folders else path for path in listed]
            roles[role] = given[0] if isinstance(read, str) else given
            if folders:
                digests = [f"{path}.sha256" for path in folders]
                roles[f"{role}_digests"] = (
                    digests[0] if isinstance(read, str) else digests
                )
        return roles

    return of_job


def made_by(stage):
    """Wildcard constraints of a stage that shares its paths with others: the names that its card makes."""
    return planned(wiring.constraints, PLAN, stage)


def wired():
    """What Snakemake knows of the rules that make artifacts, for the check against their cards."""
    facts = {}
    for each in workflow.rules:
        outputs = dict(getattr(rules, each.name).output.items())
        if "artifact" in outputs:
            said = {key: str(path) for key, path in outputs.items()}
            facts[each.name] = wiring.Wired(said, dict(each.wildcard_constraints))
    return facts


# Of a job: its params and resources. The stage is known by what it makes or by the rule's name, so no rule names it


def maker(job):
    """(stage, wildcards) of a job by the artifact that it makes; `job` is what Snakemake tells a params function."""
    if not job["output"]:
        raise WorkflowError(
            "`stage` makes nothing: all stages take it over. Hint: ask for a file or a target."
        )
    return planned(PLAN.maker, job["output"][0])


# Keyword arguments by name would count as derived from the output, and Snakemake records no derived params.
def settings(wildcards, **job):
    """Params function: what decides the result, as one canonical string."""
    return planned(PLAN.settings_json, *maker(job))


def code(wildcards, **job):
    """Params function: the digest of the code that the job runs."""
    return planned(PLAN.code, *maker(job))


def runtime(wildcards, output):
    """Params function: what only decides how fast the result comes."""
    said = cluster.runtime(PLAN, *maker({"output": output}))
    return Unrecorded(canonical_json(said))


def launch(wildcards, output):
    """Params function: the words that start a stage's process, or its processes."""
    stage, values = maker({"output": output})
    words = cluster.launch(PLAN, stage, values, SITE, conda=CONDA)
    return Unrecorded(f"{words} scripts.{stage}")


def arguments(wildcards, input, output):
    """Params function: the stage's inputs as options of its command line, each value quoted.

    Sources from outside are no inputs of the rule: Snakemake compares inputs by name, so files that moved would send
    everything beneath them running. Their digests stand in the settings, and the stage compares them with what it reads.
    """
    stage, values = maker({"output": output})
    words = []
    if CARDS[stage].sources:
        words += ["--source", *planned(CARDS[stage].sources, PLAN, values)]
    for role, read in planned(PLAN.roles, stage, values).items():
        given = [read] if isinstance(read, str) else read
        if [str(path) for path in given] != listed(input, role):
            raise WorkflowError(
                f"card {stage}: inputs: the rule's input {role!r} is not what the card says.\n"
                f'Hint: write `input: unpack(inputs("{stage}"))`.'
            )
        words += [f"--{role.replace('_', '-')}", *given]
    return Unrecorded(shlex.join(words))


def listed(input, role):
    """The files of one of a job's named inputs."""
    files = input.get(role, [])
    return [files] if isinstance(files, str) else list(files)


def threads(wildcards, rulename):
    """Cores of a rule's job."""
    return cluster.threads(PLAN.config, rulename, SITE) if rulename in CARDS else 1


def priority(wildcards, rulename):
    """The next iteration waits for some steps; an evaluation waits for nobody."""
    first = rulename in CARDS and CARDS[rulename].first
    return CRITICAL_PATH_PRIORITY if first else 0


CRITICAL_PATH_PRIORITY = 10


def resource(name):
    """Resource function: one of Snakemake's resources of a rule's job; None leaves it out."""

    def of_attempt(wildcards, attempt, rulename):
        if rulename not in CARDS:
            return 0  # `stage` itself, which makes nothing
        return cluster.resources(PLAN.config, rulename, SITE, attempt).get(name)

    return of_attempt
