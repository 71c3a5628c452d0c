"""The report shows what the manifests hold, escapes what models wrote, loads nothing, and is the same twice."""

import json
import random
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scripts import build_report
from scripts.lib.benchmarks.rewards import summary
from scripts.lib.data import tables
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.data.stats import interval
from scripts.lib.kinds.evaluation import Evaluate
from scripts.lib.planning.config import load
from scripts.lib.planning.plan import Plan
from scripts.lib.report import charts, templates
from scripts.lib.stage.artifact import canonical_json, input_digest, read_json, write_json
from scripts.lib.stage.digest import ROOT

ATTACK = "<script>alert('x')</script><img src=https://example.org/x.png> & \"quoted\""
INTERVALS = {"confidence": 0.95, "resamples": 200, "seed": 1}
GATES = {"max_kl": 50, "stop_on_warnings": False}


def evaluation(
    root: Path, policy: str, sft: str, level: float, labellers: list[str], temperatures: list[float]
) -> None:
    """One policy's evaluation of eight prompts, as evaluate.py writes it."""
    draw = random.Random(policy)
    rows = []
    for i in range(8):
        messages = [{"role": "user", "content": f"Name {i} fruits <b>now</b>"}]
        for k, temperature in enumerate(temperatures):
            rows.append(
                {
                    "prompt_id": tables.prompt_id(messages),
                    "k": k,
                    "messages": messages,
                    "temperature": temperature,
                    "response": f"{ATTACK} {policy} {i} {k}",
                    "tokens": draw.randint(5, 20),
                    "finish_reason": draw.choice(["stop", "stop", "length"]),
                    "kl": 0.0 if policy == sft else 3 * level + draw.gauss(0, 0.3),
                    "rewards": {name: level - 1.5 * j + draw.gauss(0, 0.1) for j, name in enumerate(labellers)},
                    "sft_rewards": {name: 0.4 - 1.5 * j + draw.gauss(0, 0.1) for j, name in enumerate(labellers)},
                }
            )
    table = root / policy / "eval/heldout.parquet"
    kept = [{**{c: row[c] for c in EVALUATION}, "rewards": canonical_json(row["rewards"])} for row in rows]
    tables.write_table(table, kept, EVALUATION, ("prompt_id", "k"))
    settings = {**INTERVALS, **GATES, "benchmark": "rewards", "rewards": labellers}
    modes = {"sampled": [r for r in rows if r["temperature"] > 0], "greedy": [r for r in rows if not r["temperature"]]}
    write_json(
        table.with_suffix(".json"),
        {
            "stage": "evaluate",
            "settings": settings,
            "code": "evaluate:0123456789 stats:abcdef",
            "inputs": {"rollouts": [{"path": f"{root}/{policy}/rollouts/e/p-1/0.parquet", "sha256": policy[-1] * 64}]},
            "output": input_digest(table),
            "counts": {"prompts": 8, "responses": len(rows)},
            "metrics": {mode: summary(chosen, Evaluate(**settings)) for mode, chosen in modes.items() if chosen},
        },
    )


def world(root: Path, runs: dict[str, int], labellers: list[str], temperatures: list[float]) -> list[str]:
    """Artifacts of some runs and their number of iterations, and the command line for them."""
    policies = {
        name: ["sft/tiny", *(f"runs/{name}/iter{n}" for n in range(1, count + 1))] for name, count in runs.items()
    }
    levels = {p: 0.4 + 0.1 * n for chain in policies.values() for n, p in enumerate(chain)}
    for policy, level in levels.items():
        evaluation(root, policy, "sft/tiny", level, labellers, temperatures)
    settings = {
        "preset": "tiny",
        "runs": [[name, "raft" if name == "raft" else "dpo", chain] for name, chain in policies.items()],
        "benchmarks": {"heldout": labellers},
        "templates": templates.digests(),
    }
    tables = [root / policy / "eval/heldout.parquet" for policy in levels]
    return [
        *("--settings", canonical_json(settings)),
        *("--evaluations", *map(str, tables)),
        *("--manifests", *(str(table.with_suffix(".json")) for table in tables)),
    ]


def more_manifests(root: Path) -> list[str]:
    """The manifests of a pair table, a check of an engine and a reward model."""
    pairs = root / "sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst.json"
    write_json(
        pairs,
        {
            "stage": "build_pairs",
            "settings": {},
            "code": "build_pairs:0123456789",
            "inputs": {},
            "output": "0" * 64,
            "counts": {
                "prompts_in": 600,
                "responses_in": 4800,
                "pairs_out": 571,
                "dropped_tied": 17,
                "dropped_identical": 12,
            },
            "metrics": {
                "mean_margin": 1.23456,
                "chosen_tokens": 11.5,
                "rejected_tokens": 14.25,
                "rejected_truncated": 0.01,
                "mean_reward": -0.5,
                "reward_spread": 0.75,
                "distinct_responses": 0.875,
                "truncated": 0.0625,
            },
        },
    )
    engine = root / "sft/tiny/rollouts/best_of_8/requests-1/engine.json"
    write_json(
        engine,
        {
            "stage": "check_engine",
            "settings": {},
            "code": "check_engine:0123456789",
            "inputs": {},
            "output": "2" * 64,
            "counts": {"responses_in": 4800, "responses_compared": 64},
            "metrics": {"gap": -0.000123, "absolute_gap": 0.0456, "largest_gap": 0.789},
        },
    )
    reward = root / "reward/bt/model.json"
    write_json(
        reward,
        {
            "stage": "train_reward",
            "settings": {},
            "code": "train_reward:0123456789",
            "inputs": {"init": [{"path": f"{root}/sft/tiny/policy", "sha256": "feedc0ffee12" + "0" * 52}]},
            "output": "1" * 64,
            "counts": {"pairs_trained": 5000, "heldout_scored": 499, "dropped_too_long": 3},
            "metrics": {
                "heldout_accuracy": 0.8431,
                "heldout_loss": 0.3579,
                "heldout_calibration_error": 0.0246,
                "heldout_longer_is_chosen": 0.5111,
            },
        },
    )
    return [str(pairs), str(engine), str(reward)]


class Page(HTMLParser):
    """What a browser would make of the page: its tags with attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, list[str]]:
    runs = {"main": 3, "offline": 1, "raft": 2}
    command = world(tmp_path, runs, ["gold", "bt"], [0.0, 1.0, 1.0]) + more_manifests(tmp_path)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    return output, command


def shown(value: dict[str, float], digits: int = 3, scale: int = 1, sign: str = "", unit: str = "") -> str:
    """An interval as the page's text has it."""
    mean, low, high = (f"{scale * value[key]:{sign}.{digits}f}".replace("-", "−") for key in ("mean", "low", "high"))
    return f"{mean}{unit} [{low}, {high}]"


def test_every_policys_numbers_are_those_of_its_manifest(built: tuple[Path, list[str]]) -> None:
    output, _ = built
    text = Page(output.read_text()).text
    for manifest in output.parent.glob("**/eval/heldout.json"):
        for mode, numbers in read_json(manifest)["metrics"].items():
            for labeller in ("gold", "bt"):
                assert shown(numbers["rewards"][labeller]) in text, (manifest, mode)
                if "sft/" not in str(manifest):
                    assert shown(numbers["change"][labeller], sign="+") in text
                    assert shown(numbers["win_rate"][labeller], 1, 100, unit=" %") in text
            assert shown(numbers["tokens"], 1) in text
            if "sft/" not in str(manifest):
                assert shown(numbers["kl"], 2) in text


def test_lead_tells_the_longest_runs_change(built: tuple[Path, list[str]]) -> None:
    output, _ = built
    lead = re.search(r'<p class="lead">(.*?)</p>', output.read_text(), re.S)
    assert lead is not None
    text = Page(lead[1]).text
    ends = [
        read_json(output.parent / policy / "eval/heldout.json")["metrics"]["sampled"]["rewards"]["gold"]
        for policy in ("sft/tiny", "runs/main/iter3", "runs/raft/iter2")
    ]
    assert "On 8 held-out prompts" in text
    assert "rose" in text
    assert all(shown(end) in text for end in ends)


def per_prompt(root: Path, policy: str, labeller: str, sampled: bool) -> dict[str, float]:
    """Mean reward of the responses to each prompt, read from the table with nothing of the report."""
    rows = tables.read_table(root / policy / "eval/heldout.parquet", EVALUATION).to_dicts()
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["temperature"] > 0) == sampled:
            found.setdefault(row["prompt_id"], []).append(json.loads(row["rewards"])[labeller])
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def lead_of(output: Path) -> str:
    """The text of the summary paragraph."""
    found = re.search(r'<p class="lead">(.*?)</p>', output.read_text(), re.S)
    assert found is not None
    return Page(found[1]).text


def test_lead_compares_the_longest_run_with_every_other_prompt_by_prompt(built: tuple[Path, list[str]]) -> None:
    output, _ = built
    ours = per_prompt(output.parent, "runs/main/iter3", "gold", sampled=True)
    for other in ("offline/iter1", "raft/iter2"):
        theirs = per_prompt(output.parent, f"runs/{other}", "gold", sampled=True)
        gap = interval([ours[prompt] - theirs[prompt] for prompt in sorted(ours)], **INTERVALS)
        end = read_json(output.parent / f"runs/{other}/eval/heldout.json")["metrics"]["sampled"]["rewards"]["gold"]
        said = f" above {other.split('/')[0]} : {shown(gap, sign='+')} against {shown(end)}"
        assert said in re.sub(r" (?=[;.])", "", lead_of(output))


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ({"main": 0.9, "once": 0.4}, "above once"),
        ({"main": 0.4, "once": 0.9}, "below once"),
        ({"main": 0.5, "once": 0.5}, "not clearly apart from once"),
    ],
)
@pytest.mark.parametrize("temperatures", [[0.0], [0.0, 1.0, 1.0]])
def test_the_comparison_says_what_its_interval_does(
    tmp_path: Path, levels: dict[str, float], verdict: str, temperatures: list[float]
) -> None:
    command = world(tmp_path, {"main": 2, "once": 1}, ["gold"], temperatures)
    for policy, run in (("runs/main/iter2", "main"), ("runs/once/iter1", "once")):
        evaluation(tmp_path, policy, "sft/tiny", levels[run], ["gold"], temperatures)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    assert f"main ended {verdict} : " in lead_of(output)


def rewrite(table: Path, rows: list[dict[str, Any]]) -> None:
    """Other rows of an evaluation, with a manifest that knows them."""
    tables.write_table(table, rows, EVALUATION, ("prompt_id", "k"))
    manifest = table.with_suffix(".json")
    write_json(manifest, read_json(manifest) | {"output": input_digest(table)})


def test_the_interval_is_that_of_paired_differences(tmp_path: Path) -> None:
    """A policy that is better by the same amount everywhere, on prompts that differ much: the interval is a point."""
    command = world(tmp_path, {"main": 2, "once": 1}, ["gold"], [1.0])
    for policy, better in (("runs/main/iter2", 0.25), ("runs/once/iter1", 0.0)):
        table = tmp_path / policy / "eval/heldout.parquet"
        rows = tables.read_table(table, EVALUATION).to_dicts()
        for i, row in enumerate(rows):
            row["rewards"] = canonical_json({"gold": i + better})
        rewrite(table, rows)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    assert "main ended above once : +0.250 [+0.250, +0.250] against " in lead_of(output)


def test_ends_that_answered_other_prompts_are_compared_on_those_of_both(tmp_path: Path) -> None:
    command = world(tmp_path, {"main": 2, "once": 1, "raft": 1}, ["gold"], [1.0])
    table = tmp_path / "runs/once/iter1/eval/heldout.parquet"
    rows = tables.read_table(table, EVALUATION).to_dicts()
    dropped = {rows[0]["prompt_id"], rows[-1]["prompt_id"]}
    rewrite(table, [row for row in rows if row["prompt_id"] not in dropped])
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    once, raft = lead_of(output).split("ended")[1].split(";")
    assert once.rstrip().endswith(" on the 6 prompts that both answered")
    assert "both answered" not in raft


def test_a_run_alone_is_compared_with_none(tmp_path: Path) -> None:
    command = world(tmp_path, {"main": 2}, ["gold"], [1.0])
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    assert "Prompt by prompt" not in lead_of(output)


def test_pairs_reward_models_and_digests_are_shown(built: tuple[Path, list[str]]) -> None:
    text = Page(built[0].read_text()).text
    for number in (
        "571",
        "17",
        "12",
        "1.235",
        "−0.500",
        "87.5 %",
        "14.2",
        "84.3 %",
        "0.358",
        "0.025",
        "51.1 %",
        "5000",
        "-1.2e-04",
        "4.6e-02",
        "7.9e-01",
    ):
        assert f" {number} " in text, number
    assert " feedc0ffee12 " in text
    assert read_json(built[0].parent / "runs/main/iter3/eval/heldout.json")["output"][:12] in text


def test_what_models_wrote_is_text(built: tuple[Path, list[str]]) -> None:
    page = Page(built[0].read_text())
    assert ATTACK in page.text
    assert "Name 0 fruits <b>now</b>" in page.text or "Name 1 fruits <b>now</b>" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object", "link")]


def test_sample_is_the_first_sampled_response(built: tuple[Path, list[str]]) -> None:
    text = Page(built[0].read_text()).text
    assert re.search(r"runs/main/iter2 \d 1 ", text)
    assert not re.search(r"runs/main/iter2 \d [02] ", text)


def test_page_loads_nothing(built: tuple[Path, list[str]]) -> None:
    html = built[0].read_text()
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_same_inputs_same_bytes(built: tuple[Path, list[str]]) -> None:
    output, command = built
    again = output.with_name("again.html")
    assert build_report.main([*command, "--output", str(again)]) == 0
    assert again.read_bytes() == output.read_bytes()
    assert read_json(again.with_suffix(".json"))["metrics"] == read_json(output.with_suffix(".json"))["metrics"]


def test_manifest_counts_what_is_shown(built: tuple[Path, list[str]]) -> None:
    manifest = read_json(built[0].with_suffix(".json"))
    assert manifest["counts"] == {
        "runs": 3,
        "policies": 7,
        "benchmarks": 1,
        "pair_tables": 1,
        "engine_checks": 1,
        "reward_models": 1,
        "warnings": 0,
        "prompts_shown": 5,
    }
    assert set(manifest["metrics"]["heldout"]) == {"main", "offline", "raft"}


def test_warnings_stand_above_everything_as_text(built: tuple[Path, list[str]]) -> None:
    output, command = built
    root = output.parent
    assert "Warnings" not in Page(output.read_text()).text
    policy = root / "runs/raft/iter1/policy.json"
    write_json(policy, {"stage": "train_raft", "output": "3" * 64, "warnings": ["the loss ended at 9"]})
    wanted = [("runs/raft/iter1/policy", "the loss ended at 9")]
    for where in (
        "runs/main/iter2/eval/heldout",
        "reward/bt/model",
        "sft/tiny/rollouts/best_of_8/requests-1/engine",
        "sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst",
    ):
        manifest = read_json(root / f"{where}.json")
        write_json(root / f"{where}.json", manifest | {"warnings": [f"{ATTACK} {where}", "and more"]})
        wanted += [(where, f"{ATTACK} {where}"), (where, "and more")]
    assert build_report.main([*command, str(policy), "--output", str(output)]) == 0
    page = Page(output.read_text())
    first = page.text[: page.text.index("Online iterative RLHF")]
    for where, text in wanted:
        assert f" {where} : {text} " in first
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert read_json(output.with_suffix(".json"))["counts"]["warnings"] == len(wanted)


def test_gold_that_falls_in_an_iteration_while_the_proxy_rises_is_warned_of(tmp_path: Path) -> None:
    command = world(tmp_path, {"main": 3}, ["gold", "bt"], [1.0])
    last = tmp_path / "runs/main/iter3/eval/heldout.json"
    manifest = read_json(last)
    # SFT has 0.4 and −1.1.
    manifest["metrics"]["sampled"]["rewards"]["gold"] = {"mean": 0.2, "low": 0.1, "high": 0.3}
    manifest["metrics"]["sampled"]["rewards"]["bt"] = {"mean": 2.0, "low": 1.9, "high": 2.1}
    write_json(last, manifest)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    text = Page(output.read_text()).text
    assert "runs/main/iter3/eval/heldout : gold fell by " in text[: text.index("Online iterative RLHF")]
    (warning,) = read_json(output.with_suffix(".json"))["warnings"]
    assert warning.startswith("runs/main/iter3/eval/heldout: gold fell by ")
    assert warning.endswith(" in this iteration while bt rose: the policy exploits what rose")


@pytest.mark.parametrize("temperatures", [[0.0], [1.0], [0.0, 0.7]])
def test_single_run_without_gold_or_reward_model(tmp_path: Path, temperatures: list[float]) -> None:
    command = world(tmp_path, {"main": 1}, ["bt"], temperatures)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 0
    text = Page(output.read_text()).text
    assert "gold" not in text
    assert "Reward models" not in text
    metrics = read_json(tmp_path / "runs/main/iter1/eval/heldout.json")["metrics"]
    assert all(shown(numbers["rewards"]["bt"]) in text for numbers in metrics.values())


def test_no_benchmark_at_all(tmp_path: Path) -> None:
    settings = {"preset": "tiny", "runs": [["main", "dpo", ["sft/tiny", "runs/main/iter1"]]], "benchmarks": {}}
    settings["templates"] = templates.digests()
    command = ["--settings", canonical_json(settings), "--output", str(tmp_path / "report.html")]
    assert build_report.main(command) == 0
    assert "No benchmark was evaluated." in (tmp_path / "report.html").read_text()


def test_missing_evaluation_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = world(tmp_path, {"main": 2}, ["gold"], [0.0, 1.0])
    gone = str(tmp_path / "runs/main/iter2/eval/heldout.json")
    assert build_report.main([*(word for word in command if word != gone), "--output", str(tmp_path / "r.html")]) == 2
    message = capfd.readouterr().err
    assert "benchmark heldout: no evaluation of runs/main/iter2" in message
    assert "Hint:" in message


def test_unknown_manifest_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = world(tmp_path, {"main": 1}, ["gold"], [0.0, 1.0])
    stray = tmp_path / "stray.json"
    write_json(stray, {"stage": "train_sft"})
    assert build_report.main([*command, str(stray), "--output", str(tmp_path / "r.html")]) == 2
    assert "stray.json: the manifest of a train_sft stage" in capfd.readouterr().err


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of the templates, in a copy of their folder that the stage and the plan read instead."""
    shutil.copytree(templates.FOLDER, tmp_path / "templates")
    monkeypatch.setattr(templates, "FOLDER", tmp_path / "templates")
    return tmp_path / "templates" / "lead.html.jinja"


@pytest.mark.parametrize("name", ["lead.html.jinja", "style.css"])
def test_an_edited_template_changes_the_settings_of_the_report(template: Path, name: str) -> None:
    config = load(ROOT / "config" / "config.yaml")
    before = Plan(config).settings("build_report", {}).model_dump()
    edited = template.with_name(name)
    edited.write_text(edited.read_text() + "\n")
    after = Plan(config).settings("build_report", {}).model_dump()
    assert {key for key in before if before[key] != after[key]} == {"templates"}
    assert [line.split("  ")[1] for line in set(after["templates"]) - set(before["templates"])] == [name]


def test_every_file_of_the_templates_counts(template: Path) -> None:
    assert {line.split("  ")[1] for line in templates.digests()} == {path.name for path in template.parent.iterdir()}


@pytest.mark.parametrize(
    "change",
    [
        lambda template: template.write_text("<p>Another lead.</p>"),
        lambda template: template.unlink(),
        lambda template: template.rename(template.with_name("first.html.jinja")),
    ],
    ids=["edited", "deleted", "renamed"],
)
def test_a_template_that_changed_after_planning_is_refused(
    tmp_path: Path, template: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], object]
) -> None:
    command = world(tmp_path, {"main": 1}, ["gold"], [1.0])
    change(template)
    output = tmp_path / "report.html"
    assert build_report.main([*command, "--output", str(output)]) == 2
    message = capfd.readouterr().err
    assert "templates: files differ from the planned ones" in message
    assert "lead.html.jinja" in message
    assert "Hint: they changed after the build was planned; start Snakemake again." in message
    assert not output.exists()


def test_charts_are_the_only_markup_that_is_not_escaped() -> None:
    for path in templates.FOLDER.iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text()), path
    makers = [path.name for path in templates.FOLDER.parent.glob("*.py") if "Markup(" in path.read_text()]
    assert makers == ["charts.py"]


def test_every_run_has_its_colours_in_the_style_sheet() -> None:
    colours = re.findall(r"--run(\d+): #[0-9a-f]{6};", (templates.FOLDER / "style.css").read_text())
    assert colours == [str(n) for n in range(charts.COLOURS)] * 2, "once for light and print, once for dark"
