"""Upkeep: what a person asks for by name, and nothing depends on. Not a part of `all`; always runs.

`audit` compares results with the plan and `verify` with their manifests; `prune` deletes weights that no run keeps, and
`weights` makes them again.
"""


# The answer belongs on the person's terminal, wherever the jobs of a profile run.
rule verify:
    log:
        "<logs>/verify.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        results=RESULTS,
    shell:
        "python -m scripts.verify_results --results {params.results:q} 2> {log:q}"


rule prune:
    log:
        "<logs>/prune.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        config=canonical_json(PLAN.config.model_dump(mode="json")),
    shell:
        "python -m scripts.prune_weights --config {params.config:q} 2> {log:q}"


# Weights that were pruned, trained again. On a GPU their bytes may differ from before; then the .sha256 differs and
# what was made from them is planned by the next `snakemake all`. Within one invocation Snakemake cannot know that the
# bytes will be the same and runs what lies between the iterations too; `make phases TARGET=weights` does not.
for n in range(1, PLAN.iterations + 1):

    rule:
        name:
            f"iter{n}_weights"
        input:
            lambda wildcards, n=n: planned(PLAN.target, "weights", n),


rule weights:
    input:
        [planned(PLAN.target, "weights", n) for n in range(1, PLAN.iterations + 1)],


rule audit:
    log:
        "<logs>/audit.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        # The configuration as it was given: an error then shows a line that can be run by hand.
        configfile=workflow.config_settings.configfiles,
        config=canonical_json(dict(workflow.config_settings.config)),
    shell:
        "python -m scripts.audit_results --configfile {params.configfile:q}"
        " --config {params.config:q} 2> {log:q}"
