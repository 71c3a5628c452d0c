"""Policies: one training step of a run, by DPO on pairs or by RAFT on the best responses.

In: the policy to start from, and what the iteration trains on. Out: runs/{run}/iter{n}/policy/.
"""


use rule stage as train_dpo with:
    input:
        unpack(inputs("train_dpo")),
    output:
        artifact=directory("<results>/runs/{run}/iter{n}/policy"),
        digests="<results>/runs/{run}/iter{n}/policy.sha256",
        manifest="<results>/runs/{run}/iter{n}/policy.json",
    log:
        "<logs>/runs/{run}/iter{n}/policy.log",
    benchmark:
        "<benchmarks>/runs/{run}/iter{n}/policy.tsv"
    wildcard_constraints:
        **made_by("train_dpo"),


use rule stage as train_raft with:
    input:
        unpack(inputs("train_raft")),
    output:
        artifact=directory("<results>/runs/{run}/iter{n}/policy"),
        digests="<results>/runs/{run}/iter{n}/policy.sha256",
        manifest="<results>/runs/{run}/iter{n}/policy.json",
    log:
        "<logs>/runs/{run}/iter{n}/policy.log",
    benchmark:
        "<benchmarks>/runs/{run}/iter{n}/policy.tsv"
    wildcard_constraints:
        **made_by("train_raft"),
