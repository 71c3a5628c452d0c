"""Rollouts of a policy, and what labellers and other policies say of them.

In: {policy}/policy/, prompts/{prompts}.parquet, reward/{reward}/model/. Out: beneath {policy}/rollouts/.
"""

# What generates stands in an environment of its own where that needs one.
ENVIRONMENTS = {"transformers": "../envs/train.yaml", "vllm": "../envs/rollout.yaml"}


use rule stage as sample_rollouts with:
    input:
        unpack(inputs("sample_rollouts")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/{shard}.tsv"
    conda:
        lambda wildcards: ENVIRONMENTS[PLAN.engine(wildcards.sampling)]


use rule stage as check_engine with:
    input:
        unpack(inputs("check_engine")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/engine.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/engine.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/engine.log",


use rule stage as score_rollouts with:
    input:
        unpack(inputs("score_rollouts")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.tsv"
    wildcard_constraints:
        **made_by("score_rollouts"),


use rule stage as verify_rollouts with:
    input:
        unpack(inputs("verify_rollouts")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.log",
    wildcard_constraints:
        **made_by("verify_rollouts"),


use rule stage as score_logprobs with:
    input:
        unpack(inputs("score_logprobs")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.log",
    benchmark:
        "<benchmarks>/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}/{shard}.tsv"
