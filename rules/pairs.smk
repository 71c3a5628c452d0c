"""Preference pairs: best against worst of a policy's own responses, or curated ones, and their reference pass.

In: rollouts and rewards, or data/{dataset}.parquet; the reference policy. Out: …/pairs/… and …/reference/….
"""


rule build_pairs:
    input:
        rollouts=lambda wildcards: PLAN.rollouts(
            wildcards.policy, wildcards.sampling, wildcards.prompts
        ),
        rewards=lambda wildcards: PLAN.rewards(
            wildcards.policy, wildcards.sampling, wildcards.prompts, wildcards.reward
        ),
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.log",
    priority: CRITICAL_PATH_PRIORITY
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("build_pairs"),
        settings=settings("build_pairs"),
        code=code("build_pairs"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.build_pairs --settings {params.settings:q} --code {params.code:q}"
        " --rollouts {input.rollouts:q} --rewards {input.rewards:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule select_pairs:
    input:
        dataset="<results>/data/{dataset}.parquet",
    output:
        table="<results>/data/{dataset}/pairs/{pairing}.parquet",
        manifest="<results>/data/{dataset}/pairs/{pairing}.json",
    log:
        "<logs>/data/{dataset}/pairs/{pairing}.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("select_pairs"),
        settings=settings("select_pairs"),
        code=code("select_pairs"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.select_pairs --settings {params.settings:q} --code {params.code:q}"
        " --dataset {input.dataset:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule score_reference:
    input:
        scorer=ancient("<results>/{scorer}/policy"),
        scorer_digests="<results>/{scorer}/policy.sha256",
        pairs="<results>/{tail}.parquet",
    output:
        table="<results>/{tail}/reference/{quantized}{scorer}.parquet",
        manifest="<results>/{tail}/reference/{quantized}{scorer}.json",
    log:
        "<logs>/{tail}/reference/{quantized}{scorer}.log",
    benchmark:
        "<benchmarks>/{tail}/reference/{quantized}{scorer}.tsv"
    wildcard_constraints:
        tail=r".+/pairs/[a-z0-9_/]+",
        quantized=r"(nf4/)?",
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("score_reference")
    resources:
        **needs("score_reference"),
    params:
        launch=launch("score_reference"),
        settings=settings("score_reference"),
        code=code("score_reference"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.score_reference --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --scorer {input.scorer:q} --pairs {input.pairs:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"
