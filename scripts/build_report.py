"""One self-contained page about all runs: what was learnt, at what distance from SFT, from which pairs, in which words.

Every number on the page stands in a manifest or a table; nothing is computed here but rounding. Whatever a model or a
data set wrote is untrusted text and escaped.
"""

import json
import re
import sys
from dataclasses import dataclass
from functools import reduce
from html import escape
from operator import getitem
from pathlib import Path
from typing import Any

import polars as pl

from scripts.lib.data import tables
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.report import charts
from scripts.lib.report.charts import (
    Interval,
    clipped,
    figure,
    header,
    interval,
    nats,
    number,
    percent,
    signed,
    table,
    title,
)
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.errors import InputError

Manifest = dict[str, Any]

MODES = ("sampled", "greedy")
SAMPLES = 5
LOG_RATIO = "log π − log π(SFT)"
POLICY = r"(?:^|/)(?P<policy>sft/\w+|runs/\w+/iter[1-9][0-9]*)"
EVALUATION_FILE = re.compile(POLICY + r"/eval/(?P<benchmark>\w+)\.(?:json|parquet)$")
PAIRS_FILE = re.compile(POLICY + r"/rollouts/\w+/(?P<prompts>\w+-\d+)/pairs/(?P<reward>\w+)/(?P<pairing>\w+)\.json$")
ENGINE_FILE = re.compile(POLICY + r"/rollouts/(?P<sampling>\w+)/(?P<prompts>\w+-\d+)/engine\.json$")
REWARD_FILE = re.compile(r"(?:^|/)reward/(?P<reward>\w+)/model\.json$")
WEIGHTS_FILE = re.compile(POLICY + r"/policy(?:\.json)?$")


@dataclass(frozen=True)
class Run:
    """A run as the page shows it: its policies in order, SFT first, and the slot of its colour and marker."""

    name: str
    method: str
    policies: list[str]
    slot: int


@dataclass(frozen=True)
class Benchmark:
    """Every policy's evaluation on one prompt set; the first labeller is the headline."""

    name: str
    labellers: list[str]
    manifests: dict[str, Manifest]
    tables: dict[str, Path]

    def summary(self, policy: str, mode: str) -> dict[str, Any]:
        """The manifest's numbers of one policy in one mode."""
        return self.manifests[policy]["metrics"][mode]

    @property
    def modes(self) -> list[str]:
        """The modes that every policy was evaluated in."""
        return [mode for mode in MODES if all(mode in found["metrics"] for found in self.manifests.values())]

    @property
    def drawn(self) -> str:
        """How the sampled responses were drawn, as the tables say; empty if all are greedy."""
        values = tables.read_table(next(iter(self.tables.values())), EVALUATION)["temperature"].unique().sort()
        return "at temperature " + " and ".join(f"{value:g}" for value in values if value > 0) if values.max() else ""

    @property
    def distance(self) -> str:
        """What the mean of log π − log π_SFT is: an estimate of the KL only if the draws are from π itself."""
        return "KL to SFT" if self.drawn == "at temperature 1" else LOG_RATIO

    @property
    def confidence(self) -> str:
        """The intervals' confidence, for people."""
        return f"{100 * next(iter(self.manifests.values()))['settings']['confidence']:g} %"


@dataclass(frozen=True)
class Facts:
    """Everything that the page is made from."""

    preset: str
    runs: list[Run]
    benchmarks: list[Benchmark]
    pairs: list[tuple[dict[str, str], Manifest]]
    engines: list[tuple[dict[str, str], Manifest]]
    rewards: list[tuple[str, Manifest]]
    weights: dict[str, str]


def read(job: contract.Job) -> Facts:
    """Sort the manifests by what they describe. Raises InputError if a policy lacks its evaluation."""
    evaluations: dict[tuple[str, str], Manifest] = {}
    pairs, engines, rewards, weights = [], [], [], {}
    for path in job.inputs["manifests"]:
        manifest = artifact.read_json(path)
        for entry in [entry for entries in manifest.get("inputs", {}).values() for entry in entries]:
            if found := WEIGHTS_FILE.search(entry["path"]):
                weights[found["policy"]] = entry["sha256"]
        if found := EVALUATION_FILE.search(str(path)):
            evaluations[found["benchmark"], found["policy"]] = manifest
        elif found := PAIRS_FILE.search(str(path)):
            pairs.append((found.groupdict(), manifest))
        elif found := ENGINE_FILE.search(str(path)):
            engines.append((found.groupdict(), manifest))
        elif found := REWARD_FILE.search(str(path)):
            rewards.append((found["reward"], manifest))
        elif found := WEIGHTS_FILE.search(str(path)):
            weights[found["policy"]] = manifest["output"]
        else:
            raise InputError(
                f"{path}: the manifest of a {manifest.get('stage', 'nameless')} stage has no place in the report.\n"
                "Hint: give those of evaluations, pair tables, checks of engines, reward models and policies."
            )
    tables = {}
    for path in job.inputs["evaluations"]:
        # A table by another name is missing below, with the policy that it should have been of.
        if found := EVALUATION_FILE.search(str(path)):
            tables[found["benchmark"], found["policy"]] = path
    runs = [Run(name, method, policies, slot) for slot, (name, method, policies) in enumerate(job.settings["runs"])]
    policies = list(dict.fromkeys(policy for run in runs for policy in run.policies))
    benchmarks = []
    for name, labellers in job.settings["benchmarks"].items():
        for policy in policies:
            modes = evaluations.get((name, policy), {}).get("metrics", {})
            scored = [set(labellers) <= summary["rewards"].keys() for summary in modes.values()]
            if not scored or not all(scored) or (name, policy) not in tables:
                raise InputError(
                    f"benchmark {name}: no evaluation of {policy} by {', '.join(labellers)}\n"
                    "Hint: give every policy's table and manifest; Snakemake's rule build_report does."
                )
        own = {policy: evaluations[name, policy] for policy in policies}
        benchmarks.append(Benchmark(name, labellers, own, {policy: tables[name, policy] for policy in policies}))
    return Facts(job.settings["preset"], runs, benchmarks if runs else [], pairs, engines, rewards, weights)


def lead(facts: Facts, benchmark: Benchmark) -> str:
    """What was learnt, in one paragraph: the longest run in full, the other runs' ends beside it."""
    first, others, mode = facts.runs[0], facts.runs[1:], benchmark.modes[0]
    head = benchmark.labellers[0]
    ends = [benchmark.summary(first.policies[end], mode) for end in (0, -1)]
    change = ends[1]["change"][head]
    verb = "rose" if change["low"] > 0 else "fell" if change["high"] < 0 else "did not clearly move"
    prompts = benchmark.manifests[first.policies[0]]["counts"]["prompts"]
    iterations = len(first.policies) - 1
    text = [
        f"On {prompts} held-out prompts, <b>{escape(head)}</b> of responses {benchmark.drawn or 'by greedy decoding'} "
        f"<b>{verb}</b> from {interval(ends[0]['rewards'][head])} "
        f"to <b>{interval(ends[1]['rewards'][head])}</b> in {iterations} iteration{'s' if iterations > 1 else ''} of "
        f"<b>{escape(first.name)}</b> ({escape(first.method)}): {interval(change, signed)} against SFT, preferred in "
        f"{interval(ends[1]['win_rate'][head], percent)} of comparisons."
    ]
    best = max(first.policies, key=lambda policy: benchmark.summary(policy, mode)["rewards"][head]["mean"])
    if best != first.policies[-1]:
        text.append(f"It was highest at {escape(title(best))}, not at the end.")
    for proxy in benchmark.labellers[1:2]:
        values = [interval(end["rewards"][proxy]) for end in ends]
        text.append(f"Meanwhile {escape(proxy)} went from {values[0]} to {values[1]}.")
    if benchmark.distance != LOG_RATIO:
        text.append(f"The end lies {interval(ends[1]['kl'], nats)} nats of KL from SFT.")
    if benchmark.modes[1:]:
        greedy = [benchmark.summary(first.policies[end], "greedy")["rewards"][head] for end in (0, -1)]
        text.append(f"By greedy decoding {escape(head)} went from {interval(greedy[0])} to {interval(greedy[1])}.")
    if others:
        finals = [(run, benchmark.summary(run.policies[-1], mode)["rewards"][head]) for run in others]
        ended = "; ".join(f"{escape(run.name)} {interval(value)}" for run, value in finals)
        text.append(f"{escape(head[:1].upper() + head[1:])} of the other runs at their ends: {ended}.")
    return f'<p class="lead">{" ".join(text)}</p>'


def chart_section(facts: Facts, benchmark: Benchmark) -> str:
    """Rewards, length and distance from SFT by iteration, and the rewards against that distance."""

    def by_iteration(mode: str, *keys: str) -> list[tuple[int, list[Interval]]]:
        def value(policy: str) -> Interval:
            return reduce(getitem, keys, benchmark.summary(policy, mode))

        return [(run.slot, [value(policy) for policy in run.policies]) for run in facts.runs]

    main, figures = benchmark.modes[0], []
    for labeller in benchmark.labellers:
        lines = {mode: by_iteration(mode, "rewards", labeller) for mode in benchmark.modes}
        limits = charts.common_limits([value for some in lines.values() for _, values in some for value in values])
        for mode in benchmark.modes:
            drawn = charts.by_iteration(lines[mode], limits)
            figures.append(figure(f"<b>{escape(labeller)}</b>, {mode}, by iteration", drawn))
    distance = by_iteration(main, "kl")
    for labeller in benchmark.labellers:
        heights = by_iteration(main, "rewards", labeller)
        lines_to = [charts.Line(slot, xs, ys) for (slot, xs), (_, ys) in zip(distance, heights)]
        drawn = charts.against(lines_to, f"{benchmark.distance}, nats per response")
        figures.append(figure(f"<b>{escape(labeller)}</b>, {main}, against the distance from SFT", drawn))
    figures.append(figure(f"<b>{benchmark.distance}</b>, nats, {main}, by iteration", charts.by_iteration(distance)))
    tokens = charts.by_iteration(by_iteration(main, "tokens"))
    figures.append(figure(f"<b>Tokens per response</b>, {main}, by iteration", tokens))
    return f'<div class="charts">{"".join(figures)}</div>'


def legend(runs: list[Run]) -> str:
    """Every run's marker and colour."""
    names = [(charts.glyph(run.slot), escape(run.name), escape(run.method)) for run in runs]
    items = [f'<span>{glyph}{name} <i class="muted">{method}</i></span>' for glyph, name, method in names]
    return f'<div class="legend"><span><span class="glyph">●</span>SFT</span>{"".join(items)}</div>'


def policy_rows(facts: Facts) -> list[tuple[str, str, bool]]:
    """(policy, its cell, whether a run begins here) for every policy, each once, in the order of the runs."""
    rows: dict[str, tuple[str, str, bool]] = {}
    for sft in [run.policies[0] for run in facts.runs]:
        rows[sft] = (sft, f'<span class="glyph">●</span>{escape(title(sft))}', False)
    for run in facts.runs:
        for n, policy in enumerate(run.policies[1:]):
            rows[policy] = (policy, charts.glyph(run.slot) + escape(title(policy)), n == 0)
    return list(rows.values())


def policy_table(facts: Facts, benchmark: Benchmark, mode: str) -> str:
    """Every policy's numbers in one mode."""
    groups = "".join(f'<th class="group" colspan="3">{escape(labeller)}</th>' for labeller in benchmark.labellers)
    distance = benchmark.distance if mode == "sampled" else LOG_RATIO
    names = ["policy", *["mean", "change", "wins"] * len(benchmark.labellers), distance, "tokens", "truncated"]
    rows: list[list[str]] = []
    breaks: list[int] = []
    for policy, cell, begins in policy_rows(facts):
        summary = benchmark.summary(policy, mode)
        row, is_sft = [cell], policy.startswith("sft/")
        for labeller in benchmark.labellers:
            change, wins = summary["change"][labeller], summary["win_rate"][labeller]
            row.append(interval(summary["rewards"][labeller]))
            row += ["–", "–"] if is_sft else [interval(change, signed), interval(wins, percent)]
        row.append("–" if is_sft else interval(summary["kl"], nats))
        row.append(interval(summary["tokens"], lambda value: number(value, 1)))
        row.append(percent(summary["truncated"]["mean"]))
        breaks += [len(rows)] if begins else []
        rows.append(row)
    return table(f"<tr><th></th>{groups}<th colspan=3></th></tr>{header(names)}", rows, breaks=breaks)


def pair_section(pairs: list[tuple[dict[str, str], Manifest]]) -> str:
    """What became of every iteration's rollouts."""
    reasons = sorted({key for _, found in pairs for key in found["counts"] if key.startswith("dropped_")})
    names = ["responses of", "prompts", "pairing", "prompts in", "pairs out"]
    names += [key.removeprefix("dropped_").replace("_", " ") for key in reasons]
    names += ["mean margin", "mean reward", "spread", "distinct", "truncated", "chosen tokens", "rejected tokens"]
    rows = []
    for where, found in pairs:
        counts, metrics = found["counts"], found["metrics"]
        words = [title(where["policy"]), where["prompts"], f"{where['reward']} · {where['pairing']}"]
        row = [escape(word) for word in words] + [str(counts[key]) for key in ("prompts_in", "pairs_out")]
        row += [str(counts.get(key, 0)) for key in reasons]
        row += [number(metrics[key]) for key in ("mean_margin", "mean_reward", "reward_spread")]
        row += [percent(metrics[key]) for key in ("distinct_responses", "truncated")]
        rows.append(row + [number(metrics[key], 1) for key in ("chosen_tokens", "rejected_tokens")])
    note = (
        "One row per table that DPO trained on; after pairs out, the prompts without a pair by reason. Spread is the "
        "standard deviation of a prompt's rewards; distinct, the share of its responses that differ."
    )
    return f'<h2>Pairs</h2><p class="note">{note}</p>{table(header(names, 3), rows, left=3)}'


def engine_section(engines: list[tuple[dict[str, str], Manifest]]) -> str:
    """How far the engine that sampled was from the model that was trained, by iteration."""
    names = ["responses of", "prompts", "sampling", "compared", "mean gap", "mean of absolute gaps", "largest gap"]
    rows = []
    for where, found in engines:
        row = [escape(title(where["policy"])), escape(where["prompts"]), escape(where["sampling"])]
        row.append(str(found["counts"]["responses_compared"]))
        rows.append(row + [f"{found['metrics'][key]:.1e}" for key in ("gap", "absolute_gap", "largest_gap")])
    note = (
        "Log-probabilities of the same tokens, the engine's minus the trainer's, nats per token: what was sampled is "
        "on-policy for the trainer as far as these are small. An iteration does not train beyond the tolerance."
    )
    return f'<h2>Engine against trainer</h2><p class="note">{note}</p>{table(header(names, 3), rows, left=3)}'


def reward_section(rewards: list[tuple[str, Manifest]]) -> str:
    """How well the reward models predict held-out preferences."""
    names = ["reward model", "held-out accuracy", "loss", "calibration error", "longer is chosen", "pairs trained"]
    rows = []
    for name, found in rewards:
        counts, metrics = found["counts"], found["metrics"]
        row = [escape(name), percent(metrics["heldout_accuracy"]), number(metrics["heldout_loss"])]
        row += [number(metrics["heldout_calibration_error"]), percent(metrics["heldout_longer_is_chosen"])]
        row += [str(counts[key]) for key in ("pairs_trained", "heldout_scored", "dropped_too_long")]
        rows.append(row)
    note = "Longer is chosen: the share of held-out pairs whose chosen answer is the longer one."
    head = header([*names, "pairs held out", "too long"])
    return f'<h2>Reward models</h2><p class="note">{note}</p>{table(head, rows)}'


def answer(cell: str, row: dict[str, Any], labellers: list[str]) -> str:
    """One policy's response with its rewards."""
    rewards = json.loads(row["rewards"])
    numbers = " · ".join(f"{escape(name)} <b>{number(rewards[name])}</b>" for name in labellers)
    length = f"{row['tokens']} tokens{', truncated' if row['finish_reason'] == 'length' else ''}"
    text = clipped(row["response"]) or '<span class="muted">(empty)</span>'
    return (
        f'<div class="answer"><div>{cell}</div><p dir="auto">{text}</p>'
        f'<div class="numbers"><span>{numbers}</span> <span>{length}</span></div></div>'
    )


def sample_section(facts: Facts, benchmark: Benchmark) -> tuple[str, int]:
    """A few prompts with every policy's response, and how many prompts there were to show."""
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    prompts: list[str] = []
    for policy, path in benchmark.tables.items():
        rows = tables.read_table(path, EVALUATION)
        rows = rows.filter(pl.col("temperature") > 0) if benchmark.drawn else rows
        prompts = prompts or sorted(rows["prompt_id"].unique().to_list())[:SAMPLES]
        first = rows.filter(pl.col("prompt_id").is_in(prompts)).sort("k").unique("prompt_id", keep="first")
        shown[policy] = {row["prompt_id"]: row for row in first.to_dicts()}
    cells = {policy: cell for policy, cell, _ in policy_rows(facts)}
    # SFT policies and runs of one iteration share the first row: a row of its own would be mostly empty.
    short = [policy for run in facts.runs if len(run.policies) == 2 for policy in run.policies[1:]]
    rows_of = [list(dict.fromkeys(run.policies[0] for run in facts.runs)) + short]
    rows_of += [run.policies[1:] for run in facts.runs if len(run.policies) > 2]
    parts = []
    for prompt in prompts:
        parts.append('<div class="sample">')
        for turn in next(iter(shown.values()))[prompt]["messages"]:
            role = f'<span class="role">{escape(turn["role"])}</span>'
            parts.append(f'<div class="turn" dir="auto">{role}{clipped(turn["content"])}</div>')
        for policies in rows_of:
            answers = [answer(cells[p], shown[p][prompt], benchmark.labellers) for p in policies if prompt in shown[p]]
            parts.append(f'<div class="row">{"".join(answers)}</div>')
        parts.append("</div>")
    note = (
        f"The first response {benchmark.drawn or 'by greedy decoding'} to {len(prompts)} prompts, chosen by their ids "
        "and by nothing else, with what each labeller gave it."
    )
    return f'<h3>Side by side</h3><p class="note">{note}</p>{"".join(parts)}', len(prompts)


def provenance(facts: Facts) -> str:
    """Digests of what the page speaks of, where a manifest names them."""
    rows = []
    for policy, cell, _ in policy_rows(facts):
        row = [cell, f'<span class="digest">{facts.weights.get(policy, "–")[:12]}</span>']
        for benchmark in facts.benchmarks:
            found = benchmark.manifests[policy]
            shards = [entry["sha256"][:12] for entry in found["inputs"]["rollouts"]]
            listed = " ".join(shards[:3]) + (" …" if shards[3:] else "")
            row += [f'<span class="digest">{text}</span>' for text in (listed, found["output"][:12])]
        rows.append(row)
    kinds = ("responses", "evaluation")
    names = ["policy", "weights", *(f"{escape(b.name)}: {kind}" for b in facts.benchmarks for kind in kinds)]
    manifests = [found for benchmark in facts.benchmarks for found in benchmark.manifests.values()]
    manifests += [found for _, found in [*facts.pairs, *facts.engines, *facts.rewards]]
    code = sorted({str(found["code"]).split(" ")[0] for found in manifests})
    return (
        f"<h2>Provenance</h2><p class=note>Preset <b>{escape(facts.preset)}</b>. Artifacts are named by the first 12 "
        f"hex digits of their SHA-256, as the manifests hold it. Code: <code>{escape(' '.join(code))}</code></p>"
        + table(header(names, len(names)), rows, left=len(names))
    )


def page(facts: Facts) -> tuple[str, int]:
    """The page, and how many prompts it shows responses to."""
    parts, samples = [], 0
    for benchmark in facts.benchmarks:
        if len(facts.benchmarks) > 1:
            parts.append(f"<h2>Benchmark {escape(benchmark.name)}</h2>")
        parts.append(lead(facts, benchmark))
        note = (
            f"Brackets and bars are {benchmark.confidence} bootstrap intervals over prompts: they speak of these "
            "policies, not of what another training seed would have given."
        )
        parts.append(f'<p class="note">{note}</p>{legend(facts.runs)}{chart_section(facts, benchmark)}')
        for mode in benchmark.modes:
            how = f"sampled {benchmark.drawn}" if mode == "sampled" else "greedy decoding"
            parts.append(f"<h3>Every policy, {how}</h3>{policy_table(facts, benchmark, mode)}")
        section, count = sample_section(facts, benchmark)
        parts.append(section)
        samples += count
    if not facts.benchmarks:
        parts.append('<p class="lead">No benchmark was evaluated.</p>')
    parts += [pair_section(facts.pairs)] if facts.pairs else []
    parts += [engine_section(facts.engines)] if facts.engines else []
    parts += [reward_section(facts.rewards)] if facts.rewards else []
    methods = sorted({run.method for run in facts.runs})
    note = "What is made once feeds a ring that turns once per iteration: a policy's own answers train the next policy."
    parts.append(f'<h2>How it was made</h2><p class="note">{note}</p>{charts.loop(methods)}')
    runs = " · ".join(f"{escape(run.name)} ({len(run.policies) - 1})" for run in facts.runs)
    head = (
        f"<header>{charts.mark()}<div><h1>Ouroboros</h1><p>Online iterative RLHF, preset {escape(facts.preset)}. "
        f"Runs and their iterations: {runs}</p></div></header>\n"
    )
    body = head + "\n".join(parts) + f"\n<footer>{provenance(facts)}</footer>"
    return charts.document(f"Ouroboros: {facts.preset}", body), samples


def run(job: contract.Job) -> None:
    """Read the manifests, write the page."""
    facts = read(job)
    html, samples = page(facts)
    artifact.write_text(job.output, html)
    policies = {policy for run in facts.runs for policy in run.policies}
    job.counts = {"runs": len(facts.runs), "policies": len(policies), "benchmarks": len(facts.benchmarks)}
    job.counts |= {
        "pair_tables": len(facts.pairs),
        "engine_checks": len(facts.engines),
        "reward_models": len(facts.rewards),
        "prompts_shown": samples,
    }
    for benchmark in facts.benchmarks:
        head, mode = benchmark.labellers[0], benchmark.modes[0]
        ends = {run.name: benchmark.summary(run.policies[-1], mode)["rewards"][head]["mean"] for run in facts.runs}
        job.metrics[benchmark.name] = ends
    job.note = f"{len(facts.runs)} runs, {len(policies)} policies, {len(html) // 1024} KiB"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("build_report", run, ("evaluations*", "manifests*"), argv)


if __name__ == "__main__":
    sys.exit(main())
