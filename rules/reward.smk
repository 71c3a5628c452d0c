"""Reward models: trained on curated preferences.

In: sft/{sft}/policy/ or base/{base}/model/, two preference tables. Out: reward/{reward}/model/.
"""


rule train_reward:
    input:
        init=lambda wildcards: ancient(
            PLAN.model(PLAN.config["rewards"][wildcards.reward]["init"])
        ),
        init_digests=lambda wildcards: PLAN.model(
            PLAN.config["rewards"][wildcards.reward]["init"]
        )
        + ".sha256",
        dataset=lambda wildcards: PLAN.dataset(
            PLAN.config["rewards"][wildcards.reward]["dataset"]
        ),
        heldout=lambda wildcards: PLAN.dataset(
            PLAN.config["rewards"][wildcards.reward]["heldout"]
        ),
    output:
        model=directory("<results>/reward/{reward}/model"),
        digests="<results>/reward/{reward}/model.sha256",
        manifest="<results>/reward/{reward}/model.json",
    log:
        "<logs>/reward/{reward}/model.log",
    benchmark:
        "<benchmarks>/reward/{reward}/model.tsv"
    wildcard_constraints:
        reward=of_kind("rewards", "bt"),
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("train_reward")
    resources:
        **needs("train_reward"),
    params:
        launch=launch("train_reward"),
        settings=settings("train_reward"),
        code=code("train_reward"),
        runtime=runtime("train_reward"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.train_reward --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --init {input.init:q} --dataset {input.dataset:q}"
        " --heldout {input.heldout:q} --output {output.model:q} --results {params.results:q} 2> {log:q}"
