"""Preference pairs: best against worst of a policy's own responses, or curated ones, and their reference pass.

In: rollouts and rewards, or data/{dataset}.parquet; the reference policy. Out: …/pairs/… and …/reference/….
"""


use rule stage as build_pairs with:
    input:
        unpack(inputs("build_pairs")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.log",
    localrule: True


use rule stage as select_pairs with:
    input:
        unpack(inputs("select_pairs")),
    output:
        artifact="<results>/data/{dataset}/pairs/{pairing}.parquet",
        manifest="<results>/data/{dataset}/pairs/{pairing}.json",
    log:
        "<logs>/data/{dataset}/pairs/{pairing}.log",
    localrule: True


use rule stage as score_reference with:
    input:
        unpack(inputs("score_reference")),
    output:
        artifact="<results>/{tail}/reference/{quantized}{scorer}.parquet",
        manifest="<results>/{tail}/reference/{quantized}{scorer}.json",
    log:
        "<logs>/{tail}/reference/{quantized}{scorer}.log",
    benchmark:
        "<benchmarks>/{tail}/reference/{quantized}{scorer}.tsv"
