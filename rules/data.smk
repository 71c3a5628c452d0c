"""Data: conversations, preferences and prompt sets as tables, from the project's world or from local files.

In: nothing, or the local files named in config. Out: data/{dataset}.parquet, prompts/{prompts}.parquet.
"""


rule curate_data:
    output:
        table="<results>/data/{dataset}.parquet",
        manifest="<results>/data/{dataset}.json",
    log:
        "<logs>/data/{dataset}.log",
    conda:
        "../envs/train.yaml"
    threads: threads("curate_data")
    resources:
        **needs("curate_data"),
    params:
        launch=launch("curate_data"),
        settings=settings("curate_data"),
        code=code_digest("curate_data"),
        source=source_files("datasets", "dataset"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.curate_data --settings {params.settings:q} --code {params.code:q}"
        " --source {params.source:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule make_prompts:
    output:
        table="<results>/prompts/{prompts}.parquet",
        manifest="<results>/prompts/{prompts}.json",
    log:
        "<logs>/prompts/{prompts}.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("make_prompts"),
        settings=settings("make_prompts"),
        code=code_digest("make_prompts"),
        source=source_files("prompts", "prompts"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.make_prompts --settings {params.settings:q} --code {params.code:q}"
        " --source {params.source:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"
