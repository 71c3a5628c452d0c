"""Rollouts of a policy, and what labellers and other policies say of them.

In: {policy}/policy/, prompts/{prompts}.parquet, reward/{reward}/model/. Out: beneath {policy}/rollouts/.
"""


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
        "../envs/train.yaml"
    threads: THREADS
    params:
        settings=settings("sample_rollouts"),
        code=code_digest("sample_rollouts"),
        results=RESULTS,
        runtime=RUNTIME,
    shell:
        "python -m scripts.sample_rollouts --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --policy {input.policy:q} --prompts {input.prompts:q}"
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
    threads: THREADS
    params:
        settings=settings("score_rollouts"),
        code=code_digest("score_rollouts"),
        results=RESULTS,
        runtime=RUNTIME,
    shell:
        "python -m scripts.score_rollouts --settings {params.settings:q} --code {params.code:q}"
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
    params:
        settings=settings("verify_rollouts"),
        code=code_digest("verify_rollouts"),
        results=RESULTS,
    shell:
        "python -m scripts.verify_rollouts --settings {params.settings:q} --code {params.code:q}"
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
    threads: THREADS
    params:
        settings=settings("score_logprobs"),
        code=code_digest("score_logprobs"),
        results=RESULTS,
        runtime=RUNTIME,
    shell:
        "python -m scripts.score_logprobs --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --scorer {input.scorer:q} --rollouts {input.rollouts:q}"
        " --output {output.table:q} --results {params.results:q} 2> {log:q}"
