"""Reward models: trained on curated preferences.

In: sft/{sft}/policy/ or base/{base}/model/, two preference tables. Out: reward/{reward}/model/.
"""


use rule stage as train_reward with:
    input:
        unpack(inputs("train_reward")),
    output:
        artifact=directory("<results>/reward/{reward}/model"),
        digests="<results>/reward/{reward}/model.sha256",
        manifest="<results>/reward/{reward}/model.json",
    log:
        "<logs>/reward/{reward}/model.log",
    benchmark:
        "<benchmarks>/reward/{reward}/model.tsv"
    wildcard_constraints:
        **made_by("train_reward"),
