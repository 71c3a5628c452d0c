"""Base models: made from random weights in the project's world, converted from local files, or fetched from a hub.

In: nothing, local files, or a hub's. Out: base/{base}/model/ with its manifest and digests.
"""


use rule stage as make_base with:
    output:
        artifact=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    benchmark:
        "<benchmarks>/base/{base}/model.tsv"
    wildcard_constraints:
        **made_by("make_base"),


use rule stage as convert_base with:
    output:
        artifact=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    benchmark:
        "<benchmarks>/base/{base}/model.tsv"
    wildcard_constraints:
        **made_by("convert_base"),


# The only steps that use a network are this one and fetch_data; they run where Snakemake does.
use rule stage as fetch_base with:
    output:
        artifact=directory("<results>/base/{base}/model"),
        digests="<results>/base/{base}/model.sha256",
        manifest="<results>/base/{base}/model.json",
    log:
        "<logs>/base/{base}/model.log",
    wildcard_constraints:
        **made_by("fetch_base"),
    localrule: True
