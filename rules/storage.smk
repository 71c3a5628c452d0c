"""What lies on disk: verify every byte, prune the weights that no run keeps, train them again.

In: everything under the results, by its manifests. Out: nothing; `prune` removes folders of weights.
"""


# The answer belongs on the person's terminal, wherever the jobs of a profile run.
rule verify:
    log:
        "<logs>/verify.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        results=RESULTS,
    shell:
        "python -m scripts.verify_results --results {params.results:q} 2> {log:q}"


rule prune:
    log:
        "<logs>/prune.log",
    localrule: True
    conda:
        "../envs/train.yaml"
    params:
        config=canonical_json(PLAN.config),
    shell:
        "python -m scripts.prune_weights --config {params.config:q} 2> {log:q}"


# Weights that were pruned, trained again. On a GPU their bytes may differ from before; then the .sha256 differs and
# what was made from them is planned by the next `snakemake all`. Within one invocation Snakemake cannot know that the
# bytes will be the same and runs what lies between the iterations too; `make phases TARGET=weights` does not.
for n in range(1, PLAN.config["runs"][PLAN.config["run"]]["iterations"] + 1):

    rule:
        name:
            f"iter{n}_weights"
        input:
            lambda wildcards, n=n: planned(PLAN.target, "weights", n),


rule weights:
    input:
        [
            planned(PLAN.target, "weights", n)
            for n in range(
                1, PLAN.config["runs"][PLAN.config["run"]]["iterations"] + 1
            )
        ],
