"""The rule that every stage takes over by `use rule stage as NAME with:`. What a stage adds are its paths."""


rule stage:
    log:
        "<logs>/stage.log",
    priority: priority
    conda:
        "../envs/train.yaml"
    threads: threads
    resources:
        **{name: resource(name) for name in cluster.RESOURCES},
    params:
        launch=launch,
        settings=settings,
        code=code,
        runtime=runtime,
        inputs=arguments,
        results=RESULTS,
    shell:
        "{params.launch} --settings {params.settings:q} --code {params.code:q}"
        " --runtime {params.runtime:q} {params.inputs} --output {output.artifact:q}"
        " --results {params.results:q} 2> {log:q}"
