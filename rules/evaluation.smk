"""Evaluation of every policy on held-out prompts, and the report over all of them.

In: rollouts of the evaluation prompts, their rewards and log-probabilities. Out: {policy}/eval/…, report.html.
"""


use rule stage as evaluate with:
    input:
        unpack(inputs("evaluate")),
    output:
        artifact="<results>/{policy}/eval/{benchmark}.parquet",
        manifest="<results>/{policy}/eval/{benchmark}.json",
    log:
        "<logs>/{policy}/eval/{benchmark}.log",
    localrule: True


use rule stage as build_report with:
    input:
        unpack(inputs("build_report")),
    output:
        artifact=report(
            "<results>/report.html", category="Report", labels={"what": "all runs"}
        ),
        manifest="<results>/report.json",
    log:
        "<logs>/report.log",
    localrule: True
