"""Policies: one training step of a run, by DPO on pairs or by RAFT on the best responses.

In: the policy to start from, and what `plan.py` says the iteration trains on. Out: runs/{run}/iter{n}/policy/.
"""


rule train_dpo:
    input:
        start=lambda wildcards: ancient(
            PLAN.policy(PLAN.start(wildcards.run, int(wildcards.n)))
        ),
        start_digests=lambda wildcards: PLAN.policy(
            PLAN.start(wildcards.run, int(wildcards.n))
        )
        + ".sha256",
        pairs=lambda wildcards: [
            s.pairs for s in PLAN.pair_sources(wildcards.run, int(wildcards.n))
        ],
        reference=lambda wildcards: [
            s.reference for s in PLAN.pair_sources(wildcards.run, int(wildcards.n))
        ],
        engine_checks=lambda wildcards: PLAN.engine_checks(
            wildcards.run, int(wildcards.n)
        ),
    output:
        policy=directory("<results>/runs/{run}/iter{n}/policy"),
        digests="<results>/runs/{run}/iter{n}/policy.sha256",
        manifest="<results>/runs/{run}/iter{n}/policy.json",
    log:
        "<logs>/runs/{run}/iter{n}/policy.log",
    benchmark:
        "<benchmarks>/runs/{run}/iter{n}/policy.tsv"
    wildcard_constraints:
        run=only(PLAN.runs_by("dpo")),
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("train_dpo")
    resources:
        **needs("train_dpo"),
    params:
        launch=launch("train_dpo"),
        settings=settings("train_dpo"),
        code=code("train_dpo"),
        runtime=runtime("train_dpo"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.train_dpo --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --start {input.start:q} --pairs {input.pairs:q}"
        " --reference {input.reference:q} --engine-checks {input.engine_checks:q}"
        " --output {output.policy:q} --results {params.results:q} 2> {log:q}"


rule train_raft:
    input:
        start=lambda wildcards: ancient(
            PLAN.policy(PLAN.start(wildcards.run, int(wildcards.n)))
        ),
        start_digests=lambda wildcards: PLAN.policy(
            PLAN.start(wildcards.run, int(wildcards.n))
        )
        + ".sha256",
        rollouts=lambda wildcards: PLAN.best_of_sources(
            wildcards.run, int(wildcards.n)
        )[0],
        rewards=lambda wildcards: PLAN.best_of_sources(
            wildcards.run, int(wildcards.n)
        )[1],
        engine_checks=lambda wildcards: PLAN.engine_checks(
            wildcards.run, int(wildcards.n)
        ),
    output:
        policy=directory("<results>/runs/{run}/iter{n}/policy"),
        digests="<results>/runs/{run}/iter{n}/policy.sha256",
        manifest="<results>/runs/{run}/iter{n}/policy.json",
    log:
        "<logs>/runs/{run}/iter{n}/policy.log",
    benchmark:
        "<benchmarks>/runs/{run}/iter{n}/policy.tsv"
    wildcard_constraints:
        run=only(PLAN.runs_by("raft")),
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("train_raft")
    resources:
        **needs("train_raft"),
    params:
        launch=launch("train_raft"),
        settings=settings("train_raft"),
        code=code("train_raft"),
        runtime=runtime("train_raft"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.train_raft --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --start {input.start:q} --rollouts {input.rollouts:q}"
        " --rewards {input.rewards:q} --engine-checks {input.engine_checks:q}"
        " --output {output.policy:q} --results {params.results:q} 2> {log:q}"
