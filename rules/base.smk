"""Base models: made from random weights in the project's world, converted from local files, or fetched from a hub.

In: nothing, local files, or a hub's. Out: base/{base}/model/ with its manifest and digests.
"""


rule make_base:
    output:
        model=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    benchmark:
        "<benchmarks>/base/{base}/model.tsv"
    wildcard_constraints:
        base=of_kind("bases", "world"),
    conda:
        "../envs/train.yaml"
    threads: threads("make_base")
    resources:
        **needs("make_base"),
    params:
        launch=launch("make_base"),
        settings=settings("make_base"),
        code=code("make_base"),
        runtime=RUNTIME,
        results=RESULTS,
    shell:
        "{params.launch} scripts.make_base --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --output {output.model:q} --results {params.results:q} 2> {log:q}"


rule convert_base:
    output:
        model=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    benchmark:
        "<benchmarks>/base/{base}/model.tsv"
    wildcard_constraints:
        base=of_kind("bases", "gguf", "folder"),
    conda:
        "../envs/train.yaml"
    threads: threads("convert_base")
    resources:
        **needs("convert_base"),
    params:
        launch=launch("convert_base"),
        settings=settings("convert_base"),
        code=code("convert_base"),
        runtime=shape,
        source=source_files("bases", "base"),
        results=RESULTS,
    shell:
        "{params.launch} scripts.convert_base --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --source {params.source:q} --output {output.model:q} --results {params.results:q} 2> {log:q}"


# The only steps that use a network are this one and fetch_data; they run where Snakemake does.
rule fetch_base:
    output:
        model=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    wildcard_constraints:
        base=of_kind("bases", "hub"),
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        launch=launch("fetch_base"),
        settings=settings("fetch_base"),
        code=code("fetch_base"),
        runtime=shape,
        results=RESULTS,
    shell:
        "{params.launch} scripts.fetch_base --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} --output {output.model:q} --results {params.results:q} 2> {log:q}"
