"""Data: conversations, preferences and prompt sets as tables, from the project's world or from local files.

In: nothing, or the local files named in config. Out: data/{dataset}.parquet, prompts/{prompts}.parquet.
"""


rule curate_data:
    input:
        source=lambda wildcards: planned(
            PLAN.source_files, "datasets", wildcards.dataset
        ),
    output:
        table="<results>/data/{dataset}.parquet",
        manifest="<results>/data/{dataset}.json",
    log:
        "<logs>/data/{dataset}.log",
    conda:
        "../envs/train.yaml"
    params:
        settings=settings("curate_data"),
        code=code_digest("curate_data"),
        results=RESULTS,
    shell:
        "python -m scripts.curate_data --settings {params.settings:q} --code {params.code:q}"
        " --source {input.source:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule make_prompts:
    input:
        source=lambda wildcards: planned(
            PLAN.source_files, "prompts", wildcards.prompts.rsplit("-", 1)[0]
        ),
    output:
        table="<results>/prompts/{prompts}.parquet",
        manifest="<results>/prompts/{prompts}.json",
    log:
        "<logs>/prompts/{prompts}.log",
    conda:
        "../envs/train.yaml"
    params:
        settings=settings("make_prompts"),
        code=code_digest("make_prompts"),
        results=RESULTS,
    shell:
        "python -m scripts.make_prompts --settings {params.settings:q} --code {params.code:q}"
        " --source {input.source:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"
