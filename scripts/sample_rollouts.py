"""K responses of a policy to each prompt of one shard.

Every response has its own seed, derived from the sampling's seed, the prompt and k, so it does not depend on which
others are generated beside it. K is split into equal blocks, one per temperature (the paper's mix is 1.0 and 0.7).
Finish reasons are kept: a response that was cut off must not be trained on as if it were whole. So is whether a
response's words stand for exactly its tokens: otherwise what labellers judge is not what would be trained on.

An engine that is up may go on with shards that nobody is making (`runtime.shards_per_engine`). It leaves their
responses in their own steps' work folders, where these find them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.data.seeds import derive_seed
from scripts.lib.models.generation import Engine, Request, Response
from scripts.lib.stage import artifact, contract, families, work
from scripts.lib.stage.chunks import Chunks
from scripts.lib.stage.errors import InputError
from scripts.lib.stage.throughput import Throughput

Row = dict[str, Any]


@dataclass
class Shard:
    """A shard that an engine works on: a prompt and a k for each request, and the responses that are there.

    `held` keeps the lock of another step's shard.
    """

    about: list[tuple[Row, int]]
    requests: list[Request]
    chunks: Chunks
    prompts: int
    long_prompts: int
    held: ExitStack = field(default_factory=ExitStack)

    def missing(self) -> list[int]:
        """Indices of the requests without a response."""
        return [i for i in range(len(self.requests)) if i not in self.chunks.rows]


def temperature_of(k: int, samples: int, temperatures: list[float]) -> float:
    """The temperature of the k-th of `samples` responses: equal blocks in the order given."""
    return temperatures[k * len(temperatures) // samples]


def recorded(settings: dict[str, Any], seeds: list[int]) -> set[int]:
    """Seeds of the responses whose log-probability is kept: all, or a fixed few to hold the engine against the trainer.

    Seeds are digests, so the smallest ones are a fair draw of prompts and k.
    """
    return set(seeds if settings["record_logprobs"] else sorted(seeds)[: settings.get("check_responses", 0)])


def shard_of(
    settings: dict[str, Any], everything: list[Row], tokenizer: Any, folder: Path, minutes: float, table: Path
) -> Shard:
    """The shard's requests, and what its work folder holds of their responses."""
    from scripts.lib.models import chat

    first, last = settings["first"], settings["first"] + settings["prompts"]
    prompts = everything[first:last]
    if len(prompts) < settings["prompts"]:
        raise InputError(
            f"{table}: {len(everything)} prompts, of which this shard is rows {first} to {last}.\n"
            "Hint: the prompt set is shorter than its configured size; delete it and run Snakemake."
        )
    encoded = [(prompt, chat.prompt_ids(tokenizer, prompt["messages"])) for prompt in prompts]
    kept = [(prompt, ids) for prompt, ids in encoded if len(ids) <= settings["max_prompt_tokens"]]
    about = [(prompt, k) for prompt, _ in kept for k in range(settings["k"])]
    seeds = [derive_seed(settings["seed"], prompt["prompt_id"], k) for prompt, k in about]
    with_logprob = recorded(settings, seeds)
    requests = [
        Request(
            ids,
            temperature_of(k, settings["k"], settings["temperatures"]),
            settings["top_p"],
            settings["max_new_tokens"],
            seed,
            seed in with_logprob,
        )
        for seed, (ids, k) in zip(seeds, [(ids, k) for _, ids in kept for k in range(settings["k"])], strict=True)
    ]
    return Shard(about, requests, Chunks(folder / "chunks", minutes), len(prompts), len(prompts) - len(kept))


def run(job: contract.Job) -> None:
    """Sample one shard of a prompt set."""
    from scripts.lib.models import chat, loading

    device = loading.prepare(job.runtime)
    table = job.input("prompts")
    everything = tables.read_table(table, PROMPTS).to_dicts()
    tokenizer = loading.load_tokenizer(job.input("policy"))
    stops = chat.stop_ids(tokenizer, loading.generation_config(job.input("policy")))
    minutes = job.runtime["checkpoint_minutes"]

    def shard_in(folder: Path, settings: dict[str, Any]) -> Shard:
        return shard_of(settings, everything, tokenizer, folder, minutes, table)

    own = shard_in(job.work, job.settings)
    if own.missing():
        engine = families.load("engines", job.settings["engine"]).load(job, device, stops)
        sample(job, engine, own, free_shards(job, len(everything), shard_in))
    responses = [Response(**own.chunks.rows[i]) for i in range(len(own.requests))]
    rows = [
        row(prompt, k, request, response, tokenizer, stops)
        for (prompt, k), request, response in zip(own.about, own.requests, responses, strict=True)
    ]
    job.counts = {
        "prompts_in": own.prompts,
        "dropped_long_prompts": own.long_prompts,
        "responses_out": len(rows),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "not_trainable": sum(not each["trainable"] for each in rows),
        "split_otherwise": sum(chat.split_otherwise(tokenizer, ids.token_ids, stops) for ids in responses),
    }
    job.metrics = {"tokens": sum(len(response.token_ids) for response in responses) / max(1, len(rows))}
    tables.write_table(job.output, rows, ROLLOUTS, ("prompt_id", "k"))
    job.note = (
        f"{len(rows)} responses to {own.prompts - own.long_prompts} prompts, {job.metrics['tokens']:.1f} tokens, "
        f"{job.counts['truncated']} cut off"
    )


def sample(job: contract.Job, engine: Engine, own: Shard, others: Iterator[Shard]) -> None:
    """Draw what is missing of a shard, then of others while there are some; each response goes to its own shard.

    A shard is written as soon as it is whole, not to be lost with the others, and another step's is given back: that
    step may be waiting for it.
    """
    places: list[tuple[Shard, int]] = []
    taken = [own]

    def requests() -> Iterator[Request]:
        yield from _missing(own, places)
        for shard in others:
            contract.progress(f"the engine goes on with another shard, {len(shard.missing())} responses")
            taken.append(shard)
            yield from _missing(shard, places)

    speed = Throughput()
    for found in engine.generate(requests()):
        for shard in taken:
            own_rows = {places[at][1]: asdict(r) for at, r in found.items() if places[at][0] is shard}
            if own_rows:
                shard.chunks.add(own_rows)
            if own_rows and len(shard.chunks.rows) == len(shard.requests):
                shard.chunks.flush()
                shard.held.close()  # of our own, the stage keeps the lock
        done = sum(len(shard.chunks.rows) for shard in taken)
        total = sum(len(shard.requests) for shard in taken)
        tokens = sum(len(response.token_ids) for response in found.values())
        if line := speed.line(tokens, len(found), total - done):
            contract.progress(f"{done}/{total} responses sampled, {line}")
    job.facts |= {"tokens": speed.tokens, "tokens_per_second": round(speed.per_second(), 1)}
    left = len(own.missing())
    if left:
        raise RuntimeError(f"the engine left {left} of {len(own.requests)} requests without a response")


def _missing(shard: Shard, places: list[tuple[Shard, int]]) -> Iterator[Request]:
    """The requests that have no response yet; where each belongs is noted in `places` as it is handed out."""
    for i in shard.missing():
        places.append((shard, i))
        yield shard.requests[i]


def free_shards(job: contract.Job, prompts: int, shard_in: Callable[[Path, dict[str, Any]], Shard]) -> Iterator[Shard]:
    """Shards after this one that are neither made nor being made and lack responses, each with its lock.

    Looked up when the engine has taken this one's last requests: by then the steps that started beside it hold theirs.
    """
    wanted = job.runtime["shards_per_engine"] - 1 if job.settings["engine"] == "vllm" else 0
    if not wanted:
        return
    number = int(job.output.stem)
    size = job.settings["first"] // number if number else job.settings["prompts"]
    starts = range(job.settings["first"] + size, prompts, size)
    for place, first in enumerate(starts, number + 1):
        if not wanted:
            return
        settings = {**job.settings, "first": first, "prompts": min(size, prompts - first)}
        made_of = {**job.made_of, "settings": settings}
        folder, held = job.work.with_name(str(place)), ExitStack()
        if not held.enter_context(work.borrowed(folder)):
            continue
        if _stands(job.output.with_name(f"{place}.parquet"), made_of):
            work.clear(folder)
            held.close()
            continue
        work.claim(folder, made_of)
        shard = shard_in(folder, settings)
        if not shard.missing():  # only its table is left to write, which its own step does without an engine
            held.close()
            continue
        shard.held = held
        wanted -= 1
        yield shard


def _stands(table: Path, made_of: dict[str, Any]) -> bool:
    """Whether a shard is there, made of exactly this: nobody will ask for it again."""
    try:
        manifest = artifact.read_json(artifact.manifest_path(table))
    except InputError:
        return False
    return table.exists() and all(manifest.get(key) == value for key, value in made_of.items())


def row(prompt: Row, k: int, request: Request, response: Response, tokenizer: Any, stops: list[int]) -> Row:
    """A row of the rollouts table."""
    from scripts.lib.models import chat

    return {
        "prompt_id": prompt["prompt_id"],
        "k": k,
        "messages": prompt["messages"],
        "metadata": prompt["metadata"],
        "prompt_ids": request.prompt_ids,
        "response": chat.response_text(tokenizer, response.token_ids, stops),
        "token_ids": response.token_ids,
        "finish_reason": response.finish_reason,
        "tokens": len(response.token_ids),
        "temperature": request.temperature,
        "seed": request.seed,
        "logprob": response.logprob,
        "trainable": chat.trainable(tokenizer, response.token_ids, stops),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("sample_rollouts", run, ("policy", "prompts"), argv)


if __name__ == "__main__":
    sys.exit(main())
