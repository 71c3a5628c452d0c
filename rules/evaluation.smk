"""Evaluation of every policy on held-out prompts, and the report over all of them.

In: rollouts of the evaluation prompts, their rewards and log-probabilities. Out: {policy}/eval/…, report.html.
"""


rule evaluate:
    input:
        rollouts=lambda wildcards: PLAN.evaluation_parts(
            wildcards.policy, wildcards.benchmark
        )["rollouts"],
        rewards=lambda wildcards: PLAN.evaluation_parts(
            wildcards.policy, wildcards.benchmark
        )["rewards"],
        logprobs=lambda wildcards: PLAN.evaluation_parts(
            wildcards.policy, wildcards.benchmark
        )["logprobs"],
        sft_rewards=lambda wildcards: PLAN.evaluation_parts(
            wildcards.policy, wildcards.benchmark
        )["sft_rewards"],
        # The KL compares the engine's log-probabilities with the trainer's: where they differ, it must not be told.
        engine_checks=lambda wildcards: PLAN.evaluation_parts(
            wildcards.policy, wildcards.benchmark
        )["engine_checks"],
    output:
        table="<results>/{policy}/eval/{benchmark}.parquet",
        manifest="<results>/{policy}/eval/{benchmark}.json",
    log:
        "<logs>/{policy}/eval/{benchmark}.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("evaluate"),
        settings=settings("evaluate"),
        code=code("evaluate"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.evaluate --settings {params.settings:q} --code {params.code:q}"
        " --rollouts {input.rollouts:q} --rewards {input.rewards:q} --logprobs {input.logprobs:q}"
        " --sft-rewards {input.sft_rewards:q} --engine-checks {input.engine_checks:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule build_report:
    input:
        evaluations=PLAN.evaluations(),
        manifests=PLAN.report_manifests(),
    output:
        page=report(
            "<results>/report.html", category="Report", labels={"what": "all runs"}
        ),
        manifest="<results>/report.json",
    log:
        "<logs>/report.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("build_report"),
        settings=settings("build_report"),
        code=code("build_report"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.build_report --settings {params.settings:q} --code {params.code:q}"
        " --evaluations {input.evaluations:q} --manifests {input.manifests:q} --output {output.page:q} --results {params.results:q} 2> {log:q}"
