"""What the finished tiny build has learnt, read from its artifacts."""

import itertools
import json
import re

import polars as pl
import pytest

from scripts.lib.data import tables, world
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.data.stats import interval

pytestmark = pytest.mark.build
POLICIES = ["sft/tiny", "runs/main/iter1", "runs/main/iter2", "runs/main/iter3"]


def per_prompt(build, policy: str, labeller: str = "gold", greedy: bool = False) -> dict[str, float]:
    """Mean reward of each held-out prompt's responses."""
    table = tables.read_table(build / "results/tiny" / policy / "eval/heldout.parquet", EVALUATION)
    chosen = table.filter((pl.col("temperature") == 0) if greedy else (pl.col("temperature") > 0))
    found: dict[str, list[float]] = {}
    for row in chosen.to_dicts():
        found.setdefault(row["prompt_id"], []).append(json.loads(row["rewards"])[labeller])
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def change(build, before: str, after: str, **which) -> dict[str, float]:
    """Paired difference over prompts with its 95 % interval."""
    old, new = per_prompt(build, before, **which), per_prompt(build, after, **which)
    assert old.keys() == new.keys() and len(old) == 200
    return interval([new[prompt] - old[prompt] for prompt in old], 0.95, 2000, 0)


def test_gold_rises_from_sft_to_iteration_1_and_from_1_to_2(build):
    for before, after in itertools.pairwise(POLICIES[:3]):
        assert change(build, before, after)["low"] > 0


def test_iteration_3_is_not_below_iteration_2_beyond_its_interval(build):
    assert change(build, "runs/main/iter2", "runs/main/iter3")["high"] >= 0


def test_three_iterations_end_above_all_prompts_answered_by_sft_at_once(build):
    """The same prompts, labeller and settings: what differs is who answered."""
    assert change(build, "runs/once/iter1", "runs/main/iter3")["low"] > 0


def test_main_and_once_learn_from_the_same_prompts_and_as_many_labelled_answers(build):
    root = build / "results/tiny"
    sets = [tables.read_table(root / f"prompts/requests-{n}.parquet", PROMPTS) for n in (1, 2, 3)]
    all_at_once = tables.read_table(root / "prompts/all_requests-1.parquet", PROMPTS)
    assert sorted(all_at_once["prompt_id"]) == sorted(prompt for part in sets for prompt in part["prompt_id"])
    labelled = [
        manifest(build, f"{policy}/rollouts/best_of_8/{asked}/rewards/bt/0")["counts"]["rows_out"]
        for policy, asked in (
            ("sft/tiny", "requests-1"),
            ("runs/main/iter1", "requests-2"),
            ("runs/main/iter2", "requests-3"),
            ("sft/tiny", "all_requests-1"),
        )
    ]
    assert sum(labelled[:3]) == labelled[3] == 8 * 2250


def test_greedy_gold_stands_beside_and_has_risen_over_the_run(build):
    assert change(build, "sft/tiny", "runs/main/iter3", greedy=True)["low"] > 0


def test_the_proxy_rises_with_the_policy(build):
    assert change(build, "sft/tiny", "runs/main/iter3", labeller="bt")["low"] > 0


def test_kl_to_sft_grows_and_is_zero_for_sft_itself(build):
    kl = [manifest(build, f"{policy}/eval/heldout")["metrics"]["sampled"]["kl"]["mean"] for policy in POLICIES]
    assert kl[0] == 0
    assert 0 < kl[1] < kl[3]


def manifest(build, artifact: str) -> dict:
    return json.loads((build / "results/tiny" / f"{artifact}.json").read_text())


@pytest.mark.parametrize("kind", world.KINDS)
def test_the_reward_model_tells_minimal_pairs_apart(build, kind):
    """Accuracy of at least .9 on 200 held-out pairs that differ in one kind only."""
    import torch

    from scripts.lib.models import chat, loading

    folder = build / "results/tiny/reward/bt/model"
    tokenizer, model = loading.load_tokenizer(folder), loading.load_reward(folder, "float32").eval()

    def score(prompt: str, answers: list[str]) -> list[float]:
        messages = [{"role": "user", "content": prompt}]
        scores = []
        for answer in answers:
            ids = chat.prompt_ids(tokenizer, messages) + chat.completion_ids(tokenizer, messages, answer)
            with torch.no_grad():
                scores.append(model(input_ids=torch.tensor([ids])).logits.item())
        return scores

    pairs = world.probes(kind, 200, seed=1)
    right = [score(pair["content"], [pair["better"], pair["worse"]]) for pair in pairs]
    assert sum(better > worse for better, worse in right) / len(pairs) >= 0.9


def test_the_reward_model_agrees_with_held_out_annotations(build):
    metrics = manifest(build, "reward/bt/model")["metrics"]
    assert metrics["heldout_accuracy"] > 0.8
    assert metrics["heldout_calibration_error"] < 0.1


def test_no_prompt_stands_in_two_sets(build):
    """SFT, reward model, its held-out pairs, every iteration and the evaluation share no prompt."""
    root = build / "results/tiny"
    sets = {
        "sft": tables.read_table(root / "data/demonstrations.parquet", CONVERSATIONS),
        "reward": tables.read_table(root / "data/annotations.parquet", PREFERENCES),
        "reward_heldout": tables.read_table(root / "data/annotations_heldout.parquet", PREFERENCES),
        **{f"iter{n}": tables.read_table(root / f"prompts/requests-{n}.parquet", PROMPTS) for n in (1, 2, 3)},
        "evaluation": tables.read_table(root / "prompts/heldout-1.parquet", PROMPTS),
    }
    ids = {name: set(table["prompt_id"]) for name, table in sets.items()}
    assert {name: len(found) for name, found in ids.items()} == {name: t.height for name, t in sets.items()}
    assert len(set().union(*ids.values())) == sum(map(len, ids.values()))


def test_the_evaluation_asks_for_combinations_that_no_training_prompt_holds(build):
    root = build / "results/tiny"

    def combinations(name: str) -> set[str]:
        return set(tables.read_table(root / f"prompts/{name}.parquet", PROMPTS)["metadata"])

    assert not combinations("heldout-1") & set().union(*(combinations(f"requests-{n}") for n in (1, 2, 3)))


def test_every_prompt_and_k_stands_exactly_once_in_the_rollouts(build):
    table = tables.read_table(build / "results/tiny/runs/main/iter1/rollouts/best_of_8/requests-2/0.parquet", ROLLOUTS)
    prompts = tables.read_table(build / "results/tiny/prompts/requests-2.parquet", PROMPTS)
    expected = {(prompt, k) for prompt in prompts["prompt_id"] for k in range(8)}
    assert set(table.select("prompt_id", "k").iter_rows()) == expected
    assert table.height == len(expected)


def test_offline_trains_on_the_annotations_of_the_reward_model(build):
    offline, reward = (manifest(build, name)["counts"] for name in ("runs/offline/iter1/policy", "reward/bt/model"))
    assert offline["pairs_trained"] == reward["pairs_trained"] == 5000


def test_the_report_shows_numbers_of_the_evaluation(build):
    page = (build / "results/tiny/report.html").read_text()
    for policy in POLICIES:
        metrics = manifest(build, f"{policy}/eval/heldout")["metrics"]
        assert f"{metrics['sampled']['rewards']['gold']['mean']:.3f}" in page


def test_the_reports_first_lines_compare_main_with_the_other_runs(build):
    page = (build / "results/tiny/report.html").read_text()
    lead = " ".join(re.sub(r"<[^>]*>", "", page.split('<p class="lead">')[1].split("</p>")[0]).split())
    for run in ("once", "offline", "raft"):
        mean = change(build, f"runs/{run}/iter1", "runs/main/iter3")["mean"]
        assert f" {run}: {mean:+.3f} [".replace("-", "−") in lead
    assert " above once: " in lead
