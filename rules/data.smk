"""Data: conversations, preferences and prompt sets as tables, from the project's world, local files, or a hub's.

In: nothing, or the files named in config. Out: data/{dataset}.parquet, prompts/{prompts}.parquet, and the files of a hub
that they are read from, source/{block}/{source}/files/.
"""


rule fetch_data:
    output:
        files=directory("<results>/source/{block}/{source}/files"),
        digests="<results>/source/{block}/{source}/files.sha256",
        manifest="<results>/source/{block}/{source}/files.json",
    log:
        "<logs>/source/{block}/{source}/files.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("fetch_data"),
        settings=settings("fetch_data"),
        code=code("fetch_data"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.fetch_data --settings {params.settings:q} --code {params.code:q}"
        " --output {output.files:q} --results {params.results:q} 2> {log:q}"


rule curate_data:
    input:
        fetched=lambda wildcards: ancient(PLAN.fetched("datasets", wildcards.dataset)),
        fetched_digests=lambda wildcards: [
            f"{path}.sha256" for path in PLAN.fetched("datasets", wildcards.dataset)
        ],
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
        code=code("curate_data"),
        source=source_files("datasets", "dataset"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.curate_data --settings {params.settings:q} --code {params.code:q}"
        " --source {params.source:q} --fetched {input.fetched:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"


rule make_prompts:
    input:
        fetched=lambda wildcards: ancient(PLAN.fetched("prompts", wildcards.prompts)),
        fetched_digests=lambda wildcards: [
            f"{path}.sha256" for path in PLAN.fetched("prompts", wildcards.prompts)
        ],
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
        code=code("make_prompts"),
        source=source_files("prompts", "prompts"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.make_prompts --settings {params.settings:q} --code {params.code:q}"
        " --source {params.source:q} --fetched {input.fetched:q} --output {output.table:q} --results {params.results:q} 2> {log:q}"
