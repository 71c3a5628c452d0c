"""Upkeep: what a person asks for by name, and nothing depends on. Not a part of `all`; always runs."""


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
