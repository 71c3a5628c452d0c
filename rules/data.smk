"""Data: conversations, preferences and prompt sets as tables, from the project's world, local files, or a hub's.

In: nothing, or the files named in config. Out: data/{dataset}.parquet, prompts/{prompts}.parquet, and the files of a hub
that they are read from, source/{block}/{source}/files/.
"""


use rule stage as fetch_data with:
    output:
        artifact=directory("<results>/source/{block}/{source}/files"),
        digests="<results>/source/{block}/{source}/files.sha256",
        manifest="<results>/source/{block}/{source}/files.json",
    log:
        "<logs>/source/{block}/{source}/files.log",
    localrule: True


use rule stage as curate_data with:
    input:
        unpack(inputs("curate_data")),
    output:
        artifact="<results>/data/{dataset}.parquet",
        manifest="<results>/data/{dataset}.json",
    log:
        "<logs>/data/{dataset}.log",


use rule stage as make_prompts with:
    input:
        unpack(inputs("make_prompts")),
    output:
        artifact="<results>/prompts/{prompts}.parquet",
        manifest="<results>/prompts/{prompts}.json",
    log:
        "<logs>/prompts/{prompts}.log",
    localrule: True
