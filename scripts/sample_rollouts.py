"""K responses of a policy to each prompt of one shard.

Every response has its own seed, derived from the sampling's seed, the prompt and k, so it does not depend on the
responses generated with it. K is split into equal blocks, one per temperature (the paper's mix is 1.0 and 0.7).
Finish reasons are recorded: a response that was cut off must not be trained on as if it were complete. So is whether a
response's text round-trips through the tokenizer: if not, what labellers judge is not what would be trained on.

A running engine may continue with shards that no step is working on (`runtime.shards_per_engine`). It writes their
responses to the work folders of the shards' own steps, which find them there.
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
from scripts.lib.kinds import families
from scripts.lib.kinds.sampling import SampleRollouts
from scripts.lib.models.generation import Engine, Request, Response
from scripts.lib.stage import artifact, contract, work
from scripts.lib.stage.chunks import Chunks
from scripts.lib.stage.errors import InputError
from scripts.lib.stage.throughput import Throughput

Row = dict[str, Any]


@dataclass
class Shard:
    """A shard that an engine works on: `about` has each request's (prompt, k), `chunks` the responses so far.

    `held` keeps the lock on another step's shard.
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
    """The temperature of the k-th of `samples` responses: equal blocks, in the order of `temperatures`."""
    return temperatures[k * len(temperatures) // samples]


def recorded(settings: SampleRollouts, seeds: list[int]) -> set[int]:
    """Seeds of the responses whose log-probability is recorded: all, or a few for comparing engine and trainer.

    Seeds are digests, so the smallest ones are a fair sample of prompts and k.
    """
    return set(seeds if settings.record_logprobs else sorted(seeds)[: settings.check_responses])


def shard_of(
    settings: SampleRollouts, everything: list[Row], tokenizer: Any, folder: Path, minutes: float, table: Path
) -> Shard:
    """The shard's requests, with the responses that its work folder already holds.

    Raises InputError if the table of prompts is too short for the shard.
    """
    from scripts.lib.models import chat

    first, last = settings.first, settings.first + settings.prompts
    prompts = everything[first:last]
    if len(prompts) < settings.prompts:
        raise InputError(
            f"{table}: {len(everything)} prompts, of which this shard is rows {first} to {last}.\n"
            "Hint: the prompt set is shorter than its configured size; delete it and run Snakemake."
        )
    encoded = [(prompt, chat.prompt_ids(tokenizer, prompt["messages"])) for prompt in prompts]
    kept = [(prompt, ids) for prompt, ids in encoded if len(ids) <= settings.max_prompt_tokens]
    about = [(prompt, k) for prompt, _ in kept for k in range(settings.k)]
    seeds = [derive_seed(settings.seed, prompt["prompt_id"], k) for prompt, k in about]
    with_logprob = recorded(settings, seeds)
    requests = [
        Request(
            ids,
            temperature_of(k, settings.k, settings.temperatures),
            settings.top_p,
            settings.max_new_tokens,
            seed,
            seed in with_logprob,
        )
        for seed, (ids, k) in zip(seeds, [(ids, k) for _, ids in kept for k in range(settings.k)], strict=True)
    ]
    return Shard(about, requests, Chunks(folder / "chunks", minutes), len(prompts), len(prompts) - len(kept))


def run(job: contract.Job[SampleRollouts]) -> None:
    """Sample one shard of a prompt set."""
    from scripts.lib.models import chat, loading

    device = loading.prepare(job.runtime)
    needed = job.settings.max_prompt_tokens + job.settings.max_new_tokens
    hint = "lower one of the two in `samplings`."
    loading.refuse_beyond(job.input("policy"), needed, "max_prompt_tokens + max_new_tokens", hint)
    table = job.input("prompts")
    everything = tables.read_table(table, PROMPTS).to_dicts()
    tokenizer = loading.load_tokenizer(job.input("policy"))
    stops = chat.stop_ids(tokenizer, loading.generation_config(job.input("policy")))
    minutes = job.runtime.checkpoint_minutes

    def shard_in(folder: Path, settings: SampleRollouts) -> Shard:
        return shard_of(settings, everything, tokenizer, folder, minutes, table)

    assigned = shard_in(job.work, job.settings)
    if assigned.missing():
        engine = families.load("engines", job.settings.engine).load(job, device, stops)
        sample(job, engine, assigned, free_shards(job, len(everything), shard_in))
    responses = [Response(**assigned.chunks.rows[i]) for i in range(len(assigned.requests))]
    rows = [
        row(prompt, k, request, response, tokenizer, stops)
        for (prompt, k), request, response in zip(assigned.about, assigned.requests, responses, strict=True)
    ]
    job.counts = {
        "prompts_in": assigned.prompts,
        "dropped_long_prompts": assigned.long_prompts,
        "responses_out": len(rows),
        "truncated": sum(response.finish_reason == "length" for response in responses),
        "not_trainable": sum(not each["trainable"] for each in rows),
        "split_otherwise": sum(chat.split_otherwise(tokenizer, each.token_ids, stops) for each in responses),
    }
    job.metrics = {"tokens": sum(len(response.token_ids) for response in responses) / max(1, len(rows))}
    tables.write_table(job.output, rows, ROLLOUTS, ("prompt_id", "k"))
    job.note = (
        f"{len(rows)} responses to {assigned.prompts - assigned.long_prompts} prompts, "
        f"{job.metrics['tokens']:.1f} tokens, {job.counts['truncated']} cut off"
    )


def sample(job: contract.Job[SampleRollouts], engine: Engine, assigned: Shard, others: Iterator[Shard]) -> None:
    """Sample the missing responses of the assigned shard, then of the others; each goes to its own shard's work folder.

    A shard is written as soon as it is complete, so that it survives if the engine dies, and another step's shard is
    unlocked then: that step may be waiting for it.
    """
    places: list[tuple[Shard, int]] = []
    taken = [assigned]

    def requests() -> Iterator[Request]:
        yield from _missing(assigned, places)
        for shard in others:
            contract.progress(f"the engine goes on with another shard, {len(shard.missing())} responses")
            taken.append(shard)
            yield from _missing(shard, places)

    speed = Throughput()
    for finished in engine.generate(requests()):
        for shard in taken:
            rows = {places[at][1]: asdict(r) for at, r in finished.items() if places[at][0] is shard}
            if rows:
                shard.chunks.add(rows)
            if rows and len(shard.chunks.rows) == len(shard.requests):
                shard.chunks.flush()
                shard.held.close()  # does nothing for the assigned shard, whose lock the stage keeps
        done = sum(len(shard.chunks.rows) for shard in taken)
        total = sum(len(shard.requests) for shard in taken)
        tokens = sum(len(response.token_ids) for response in finished.values())
        if line := speed.line(tokens, len(finished), total - done):
            contract.progress(f"{done}/{total} responses sampled, {line}")
    job.facts |= {"tokens": speed.tokens, "tokens_per_second": round(speed.per_second(), 1)}
    left = len(assigned.missing())
    if left:
        raise RuntimeError(f"the engine left {left} of {len(assigned.requests)} requests without a response")


def _missing(shard: Shard, places: list[tuple[Shard, int]]) -> Iterator[Request]:
    """The requests without a response; as each is yielded, its (shard, index) is appended to `places`."""
    for i in shard.missing():
        places.append((shard, i))
        yield shard.requests[i]


def free_shards(
    job: contract.Job[SampleRollouts], prompts: int, shard_in: Callable[[Path, SampleRollouts], Shard]
) -> Iterator[Shard]:
    """Later shards that lack responses, are not built and that no other step is building, each with its lock.

    They are looked up only after the engine has taken the last request of this shard: by then, steps that started at
    the same time hold the locks of theirs.
    """
    wanted = job.runtime.shards_per_engine - 1 if job.settings.engine == "vllm" else 0
    if not wanted:
        return
    number = int(job.output.stem)
    size = job.settings.first // number if number else job.settings.prompts
    starts = range(job.settings.first + size, prompts, size)
    for place, first in enumerate(starts, number + 1):
        if not wanted:
            return
        settings = job.settings.model_copy(update={"first": first, "prompts": min(size, prompts - first)})
        made_of = {**job.made_of, "settings": settings.model_dump(mode="json")}
        folder, held = job.work.with_name(str(place)), ExitStack()
        if not held.enter_context(work.borrowed(folder)):
            continue
        if _is_built(job.output.with_name(f"{place}.parquet"), made_of):
            work.clear(folder)
            held.close()
            continue
        work.claim(folder, made_of)
        shard = shard_in(folder, settings)
        if not shard.missing():  # only its table is missing; its own step writes that without an engine
            held.close()
            continue
        shard.held = held
        wanted -= 1
        yield shard


def _is_built(table: Path, made_of: dict[str, Any]) -> bool:
    """Whether a shard exists that was built from exactly `made_of`, so that no step will build it again."""
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
    return contract.execute("sample_rollouts", run, SampleRollouts, ("policy", "prompts"), argv)


if __name__ == "__main__":
    sys.exit(main())
