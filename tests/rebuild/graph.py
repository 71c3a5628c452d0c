"""The jobs of the tiny preset and what each reads, written down by hand: the yardstick for what a change plans.

Nothing here comes from scripts/lib/planning. A job is named as `tests.conftest.jobs` names it, by its rule and first
output. `GRAPH` maps a job to the jobs whose results it reads, and `below` follows it downstream.
"""

SFT = "sft/tiny"
POLICIES = {
    SFT: "train_sft results/tiny/sft/tiny/policy",
    "runs/main/iter1": "train_dpo results/tiny/runs/main/iter1/policy",
    "runs/main/iter2": "train_dpo results/tiny/runs/main/iter2/policy",
    "runs/main/iter3": "train_dpo results/tiny/runs/main/iter3/policy",
    "runs/once/iter1": "train_dpo results/tiny/runs/once/iter1/policy",
    "runs/offline/iter1": "train_dpo results/tiny/runs/offline/iter1/policy",
    "runs/raft/iter1": "train_raft results/tiny/runs/raft/iter1/policy",
}
AT_ONCE = "all_requests"
REPORT = "build_report results/tiny/report.html"
BASE = "make_base results/tiny/base/world/model"


def data(name: str) -> str:
    return f"curate_data results/tiny/data/{name}.parquet"


def prompts(name: str) -> str:
    return f"make_prompts results/tiny/prompts/{name}.parquet"


def reward(name: str = "bt") -> str:
    return f"train_reward results/tiny/reward/{name}/model"


def select(pairing: str) -> str:
    return f"select_pairs results/tiny/data/annotations/pairs/{pairing}.parquet"


def curated_reference(pairing: str) -> str:
    return f"score_reference results/tiny/data/annotations/pairs/{pairing}/reference/sft/tiny.parquet"


def dpo(run: str, n: int) -> str:
    return f"train_dpo results/tiny/runs/{run}/iter{n}/policy"


def raft(n: int) -> str:
    return f"train_raft results/tiny/runs/raft/iter{n}/policy"


# Beneath a policy: `number` is the iteration that its rollouts train, None where they are for the evaluation. `asked`
# is the prompt set of a training.


def _rollouts(policy: str, number: int | None, benchmark: str = "heldout", asked: str = "requests") -> str:
    tail = f"best_of_8/{asked}-{number}" if number else f"evaluation/{benchmark}-1"
    return f"results/tiny/{policy}/rollouts/{tail}"


def sample(policy: str, number: int | None, benchmark: str = "heldout", asked: str = "requests") -> str:
    return f"sample_rollouts {_rollouts(policy, number, benchmark, asked)}/0.parquet"


def score(
    policy: str, number: int | None, name: str = "bt", benchmark: str = "heldout", asked: str = "requests"
) -> str:
    return f"score_rollouts {_rollouts(policy, number, benchmark, asked)}/rewards/{name}/0.parquet"


def verify(policy: str, benchmark: str = "heldout") -> str:
    return f"verify_rollouts {_rollouts(policy, None, benchmark)}/rewards/gold/0.parquet"


def logprobs(policy: str, benchmark: str = "heldout") -> str:
    return f"score_logprobs {_rollouts(policy, None, benchmark)}/logprobs/sft/tiny/0.parquet"


def pairs(policy: str, number: int, asked: str = "requests") -> str:
    return f"build_pairs {_rollouts(policy, number, asked=asked)}/pairs/bt/best_worst.parquet"


def reference(policy: str, number: int, scorer: str = SFT, asked: str = "requests") -> str:
    return f"score_reference {_rollouts(policy, number, asked=asked)}/pairs/bt/best_worst/reference/{scorer}.parquet"


def evaluate(policy: str, benchmark: str = "heldout") -> str:
    return f"evaluate results/tiny/{policy}/eval/{benchmark}.parquet"


def evaluation(policy: str, benchmark: str = "heldout") -> set[str]:
    """The five jobs that judge a policy; the SFT policy needs no log-probabilities of itself."""
    return {
        sample(policy, None, benchmark),
        score(policy, None, benchmark=benchmark),
        verify(policy, benchmark),
        evaluate(policy, benchmark),
        *([logprobs(policy, benchmark)] if policy != SFT else []),
    }


def _graph() -> dict[str, set[str]]:
    sft = POLICIES[SFT]
    graph = {
        BASE: set(),
        data("demonstrations"): set(),
        data("annotations"): set(),
        data("annotations_heldout"): set(),
        prompts("heldout-1"): set(),
        prompts("requests-1"): set(),
        prompts("requests-2"): set(),
        prompts("requests-3"): set(),
        prompts(f"{AT_ONCE}-1"): set(),
        sft: {BASE, data("demonstrations")},
        reward(): {sft, data("annotations"), data("annotations_heldout")},
    }
    # Offline: curated pairs, their reference pass, one training.
    graph[select("as_given")] = {data("annotations")}
    graph[curated_reference("as_given")] = {select("as_given"), sft}
    graph[dpo("offline", 1)] = {sft, select("as_given"), curated_reference("as_given")}
    # Online: each iteration samples from the policy before it; `once` samples everything from the SFT policy. RAFT
    # shares what the SFT policy says with `main`.
    steps = [("main", "requests", SFT, 1), ("once", AT_ONCE, SFT, 1)]
    steps += [("main", "requests", f"runs/main/iter{n - 1}", n) for n in (2, 3)]
    for run, asked, policy, n in steps:
        graph[sample(policy, n, asked=asked)] = {POLICIES[policy], prompts(f"{asked}-{n}")}
        graph[score(policy, n, asked=asked)] = {sample(policy, n, asked=asked), reward()}
        graph[pairs(policy, n, asked)] = {sample(policy, n, asked=asked), score(policy, n, asked=asked)}
        graph[reference(policy, n, asked=asked)] = {pairs(policy, n, asked), sft}
        graph[dpo(run, n)] = {POLICIES[policy], pairs(policy, n, asked), reference(policy, n, asked=asked)}
    graph[raft(1)] = {sft, sample(SFT, 1), score(SFT, 1)}
    # Evaluation: every policy, compared with the SFT policy.
    for policy, trained in POLICIES.items():
        graph[sample(policy, None)] = {trained, prompts("heldout-1")}
        graph[score(policy, None)] = {sample(policy, None), reward()}
        graph[verify(policy)] = {sample(policy, None)}
        graph[evaluate(policy)] = {sample(policy, None), score(policy, None), verify(policy)}
        graph[evaluate(policy)] |= {score(SFT, None), verify(SFT)}
        if policy != SFT:
            graph[logprobs(policy)] = {sample(policy, None), sft}
            graph[evaluate(policy)] |= {logprobs(policy)}
    graph[REPORT] = set(graph)
    return graph


GRAPH = _graph()
EVERYTHING = {*GRAPH, "all"}


def of(rule: str) -> set[str]:
    """The jobs of a rule."""
    return {job for job in GRAPH if job.split()[0] == rule}


def below(*jobs: str) -> set[str]:
    """These jobs and all that reads their results, directly or through others, with the target `all`."""
    assert set(jobs) <= GRAPH.keys(), set(jobs) - GRAPH.keys()
    found = set(jobs)
    while more := {job for job, reads in GRAPH.items() if reads & found} - found:
        found |= more
    return {*found, "all"}


def above(*jobs: str) -> set[str]:
    """These jobs and all that they read, directly or through others."""
    found, pending = set[str](), list(jobs)
    while pending:
        job = pending.pop()
        if job not in found:
            found.add(job)
            pending += GRAPH[job]
    return found


# What the targets need of it; `evaluation` is that of the first run.
TARGETS = {
    "iter3_policy": above(dpo("main", 3)),
    "evaluation": above(*(evaluate(policy) for policy in (SFT, *(f"runs/main/iter{n}" for n in (1, 2, 3))))),
    "report": set(GRAPH),
    "all": set(GRAPH),
}
