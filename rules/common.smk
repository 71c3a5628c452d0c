"""What every rule's params are made of.

`settings` and `code` are recorded by Snakemake and decide what runs again; `runtime` and `results` are not recorded.
"""

import re
from pathlib import Path

from scripts.lib.planning import cluster, settings as decisive
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import code_digest


def planned(question, *args, **kwargs):
    """Ask the plan; its complaints reach the person without a traceback."""
    try:
        return question(*args, **kwargs)
    except errors.ConfigError as error:
        raise WorkflowError(str(error)) from None


class Unrecorded:
    """A param that Snakemake leaves out of its records, because it is no string: it changes how or where, never what."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text

    def __repr__(self):
        return "…"  # all that is recorded of it inside a list


def runtime(rule):
    """Runtime keys of a rule that trains, with how its processes share the model."""
    own = {"strategy": cluster.needs(PLAN.config, rule)["strategy"]}
    return Unrecorded(canonical_json({**PLAN.config["runtime"], **own}))


def shape(wildcards):
    """A base's shape: it is held against the model, and correcting it makes nothing again."""
    said = PLAN.config["bases"][wildcards.base].get("shape")
    return Unrecorded(canonical_json({"shape": said}))


RUNTIME = Unrecorded(canonical_json(PLAN.config["runtime"]))
RESULTS = Unrecorded(PLAN.root)

# The profile for a cluster names a file with what only the site knows; without one, steps run on this machine.
SAID = workflow.resource_settings.default_resources
NAMED = dict(said.split("=", 1) for said in SAID.args) if SAID else {}
CONDA = any(
    method.name == "CONDA" for method in workflow.deployment_settings.deployment_method
)
SITE = None
if "site" in NAMED:
    SITE = planned(
        cluster.read_site, Path(workflow.basedir) / NAMED["site"], PLAN.config, CONDA
    )
    planned(cluster.use_scratch, SITE)


def unready(paths):
    """What is wrong with the interpreters that making these artifacts would start."""
    return cluster.unready(PLAN.config, SITE, PLAN.samples_by("vllm", paths), CONDA)


def ready(paths):
    """Refuse a build of these artifacts whose interpreters cannot be started."""
    if found := unready(paths):
        raise errors.ConfigError(
            "\n".join(["not ready to run:", *(f"  - {line}" for line in found)])
        )


def threads(rule):
    """Cores of a rule's job."""
    return cluster.threads(PLAN.config, rule, SITE)


def needs(rule):
    """Resources of a rule's job."""
    return cluster.resources(PLAN.config, rule, SITE)


def launch(rule, *engine):
    """The words in front of a stage's module that start its process, or its processes."""
    return Unrecorded(cluster.launch(PLAN.config, rule, SITE, *engine, conda=CONDA))


def settings(stage):
    """Params function: the stage's canonical settings for a job's wildcards."""
    return lambda wildcards: planned(decisive.of, PLAN, stage, **wildcards)


def code(stage):
    """Params function: the digest of the code that a job runs."""
    return lambda wildcards: code_digest(
        stage, planned(decisive.of_stage, PLAN, stage, **wildcards)
    )


def source_files(block, name):
    """Params function: the local files of an entry of a config block, under the wildcard that names it.

    No inputs, since Snakemake compares inputs by name: files that moved would send everything beneath them running. Their
    digests stand in the settings, and the stage compares them with what it reads.
    """
    return lambda wildcards: [
        Unrecorded(path)
        for path in planned(
            PLAN.source_files, block, getattr(wildcards, name).rsplit("-", 1)[0]
        )
    ]


def only(names):
    """Wildcard constraint that matches exactly these names, and nothing if there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def of_kind(block, *kinds):
    """Constraint for the names in a config block that are of one of these kinds."""
    return only(
        name for name, entry in PLAN.config[block].items() if entry["kind"] in kinds
    )


# The next iteration waits for these; an evaluation waits for nobody.
CRITICAL_PATH_PRIORITY = 10
