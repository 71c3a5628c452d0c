"""Rollouts of a policy, and what labellers and other policies say of them.

In: {policy}/policy/, prompts/{prompts}.parquet, reward/{reward}/model/. Out: beneath {policy}/rollouts/.
"""

# What generates stands in an environment of its own where that needs one.
ENVIRONMENTS = {"transformers": "../envs/train.yaml", "vllm": "../envs/rollout.yaml"}


rule sample_rollouts:
    input:
        policy=ancient("<results>/{policy}/policy"),
        policy_digests="<results>/{policy}/policy.sha256",
        prompts="<results>/prompts/{prompts}.parquet",
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/{shard}.tsv"
    conda:
        lambda wildcards: ENVIRONMENTS[PLAN.engine(wildcards.sampling)]
    threads: threads("sample_rollouts")
    resources:
        **needs("sample_rollouts"),
    params:
        launch=lambda wildcards: launch(
            "sample_rollouts", PLAN.engine(wildcards.sampling)
        ),
        settings=settings("sample_rollouts"),
        code=code("sample_rollouts"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.sample_rollouts --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --policy {input.policy:q} --prompts {input.prompts:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule check_engine:
    input:
        policy=ancient("<results>/{policy}/policy"),
        policy_digests="<results>/{policy}/policy.sha256",
        rollouts=lambda wildcards: PLAN.rollouts(
            wildcards.policy, wildcards.sampling, wildcards.prompts
        ),
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/engine.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/engine.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/engine.log",
    priority: CRITICAL_PATH_PRIORITY
    conda:
        "../envs/train.yaml"
    threads: threads("check_engine")
    resources:
        **needs("check_engine"),
    params:
        launch=launch("check_engine"),
        settings=settings("check_engine"),
        code=code("check_engine"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.check_engine --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --policy {input.policy:q} --rollouts {input.rollouts:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule score_rollouts:
    input:
        model=ancient("<results>/reward/{reward}/model"),
        model_digests="<results>/reward/{reward}/model.sha256",
        rollouts="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet",
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.tsv"
    wildcard_constraints:
        reward=of_kind("rewards", "bt"),
    conda:
        "../envs/train.yaml"
    threads: threads("score_rollouts")
    resources:
        **needs("score_rollouts"),
    params:
        launch=launch("score_rollouts"),
        settings=settings("score_rollouts"),
        code=code("score_rollouts"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.score_rollouts --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --model {input.model:q} --rollouts {input.rollouts:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule verify_rollouts:
    input:
        rollouts="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet",
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.log",
    wildcard_constraints:
        reward=of_kind("rewards", "verifier"),
    conda:
        "../envs/train.yaml"
    threads: threads("verify_rollouts")
    resources:
        **needs("verify_rollouts"),
    params:
        launch=launch("verify_rollouts"),
        settings=settings("verify_rollouts"),
        code=code("verify_rollouts"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.verify_rollouts --settings {params.settings:q} --code {params.code:q}"
        " --rollouts {input.rollouts:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule score_logprobs:
    input:
        scorer=ancient("<results>/{scorer}/policy"),
        scorer_digests="<results>/{scorer}/policy.sha256",
        rollouts="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet",
    output:
        table="<results>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.tsv"
    conda:
        "../envs/train.yaml"
    threads: threads("score_logprobs")
    resources:
        **needs("score_logprobs"),
    params:
        launch=launch("score_logprobs"),
        settings=settings("score_logprobs"),
        code=code("score_logprobs"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.score_logprobs --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --scorer {input.scorer:q} --rollouts {input.rollouts:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"
