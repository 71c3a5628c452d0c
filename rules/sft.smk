"""The SFT policy: fine-tuned from a base model, or a base model that is instruction-tuned already.

In: base/{base}/model/, data/{dataset}.parquet. Out: sft/{sft}/policy/ with its manifest and digests.
"""


use rule stage as train_sft with:
    input:
        unpack(inputs("train_sft")),
    output:
        artifact=directory("<results>/sft/{sft}/policy"),
        digests="<results>/sft/{sft}/policy.sha256",
        manifest="<results>/sft/{sft}/policy.json",
    log:
        "<logs>/sft/{sft}/policy.log",
    benchmark:
        "<benchmarks>/sft/{sft}/policy.tsv"
    wildcard_constraints:
        **made_by("train_sft"),


use rule stage as adopt_sft with:
    input:
        unpack(inputs("adopt_sft")),
    output:
        artifact=directory("<results>/sft/{sft}/policy"),
        digests="<results>/sft/{sft}/policy.sha256",
        manifest="<results>/sft/{sft}/policy.json",
    log:
        "<logs>/sft/{sft}/policy.log",
    wildcard_constraints:
        **made_by("adopt_sft"),
