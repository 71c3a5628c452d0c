"""The targets that people type: sft, reward, iter3_policy, evaluation, report. They act on the run named in config.

Each lists all that lies beneath it (see Plan.closure).
"""

STAGES = ["rollouts", "rewards", "pairs", "policy"]


rule sft:
    input:
        lambda wildcards: planned(PLAN.target, "sft"),


rule reward:
    input:
        lambda wildcards: planned(PLAN.target, "reward"),


rule evaluation:
    input:
        lambda wildcards: planned(PLAN.target, "evaluation"),


rule report:
    input:
        lambda wildcards: planned(PLAN.target, "report"),


for n in range(1, PLAN.iterations + 1):
    for stage in STAGES:

        rule:
            name:
                f"iter{n}_{stage}"
            input:
                lambda wildcards, n=n, stage=stage: planned(PLAN.target, stage, n),
