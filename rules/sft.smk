"""The SFT policy: fine-tuned from a base model, or a base model that is instruction-tuned already.

In: base/{base}/model/, data/{dataset}.parquet. Out: sft/{sft}/policy/ with its manifest and digests.
"""


rule train_sft:
    input:
        base=lambda wildcards: ancient(
            PLAN.base(PLAN.config["sft"][wildcards.sft]["base"])
        ),
        base_digests=lambda wildcards: PLAN.base(
            PLAN.config["sft"][wildcards.sft]["base"]
        )
        + ".sha256",
        dataset=lambda wildcards: PLAN.dataset(
            PLAN.config["sft"][wildcards.sft]["dataset"]
        ),
    output:
        policy=directory("<results>/sft/{sft}/policy"),
        digests="<results>/sft/{sft}/policy.sha256",
        manifest="<results>/sft/{sft}/policy.json",
    log:
        "<logs>/sft/{sft}/policy.log",
    benchmark:
        "<benchmarks>/sft/{sft}/policy.tsv"
    wildcard_constraints:
        sft=of_kind("sft", "train"),
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("train_sft")
    resources:
        **needs("train_sft"),
    params:
        launch=launch("train_sft"),
        settings=settings("train_sft"),
        code=code("train_sft"),
        runtime=runtime("train_sft"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.train_sft --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --base {input.base:q} --dataset {input.dataset:q}"
        " --output {output.policy:q} --results {params.results:q} 2> {log:q}"


rule adopt_sft:
    input:
        base=lambda wildcards: ancient(
            PLAN.base(PLAN.config["sft"][wildcards.sft]["base"])
        ),
        base_digests=lambda wildcards: PLAN.base(
            PLAN.config["sft"][wildcards.sft]["base"]
        )
        + ".sha256",
    output:
        policy=directory("<results>/sft/{sft}/policy"),
        digests="<results>/sft/{sft}/policy.sha256",
        manifest="<results>/sft/{sft}/policy.json",
    log:
        "<logs>/sft/{sft}/policy.log",
    wildcard_constraints:
        sft=of_kind("sft", "adopt"),
    conda:
        "../envs/train.yaml"
    threads: threads("adopt_sft")
    resources:
        **needs("adopt_sft"),
    params:
        launch=launch("adopt_sft"),
        settings=settings("adopt_sft"),
        code=code("adopt_sft"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.adopt_sft --settings {params.settings:q} --code {params.code:q}"
        " --base {input.base:q} --output {output.policy:q} --results {params.results:q} 2> {log:q}"
