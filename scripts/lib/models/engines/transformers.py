"""Generation by transformers' own `generate`, on a GPU or the CPU."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from scripts.lib.kinds.runtime import Runtime
from scripts.lib.kinds.sampling import SampleRollouts
from scripts.lib.models import forward, loading
from scripts.lib.models.generation import Request, Response
from scripts.lib.stage.contract import Job


class PerRowSampling(LogitsProcessor):
    """Turns greedy decoding into sampling in which each row has its own generator, temperature and top_p.

    The argmax of logits / temperature plus independent Gumbel noise is an exact draw from the softmax (Gumbel-max).
    So `generate` runs greedily, and a row's draw depends only on its own seed, not on its neighbours in the batch.
    """

    def __init__(self, requests: list[Request], stops: list[int], device: torch.device) -> None:
        self.requests = requests
        self.stops = torch.tensor(stops, device=device)
        self.prompt_length: int | None = None
        # The generators are always on the CPU, so that a seed gives the same noise on every device.
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        self.temperatures = torch.tensor([request.temperature or 1.0 for request in requests], device=device)[:, None]
        self.top_p = torch.tensor([request.top_p for request in requests], device=device)[:, None]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of shape (rows, vocabulary) whose row-wise argmax is the row's draw."""
        logits = scores.float() / self.temperatures
        if bool((self.top_p < 1).any()):
            logits = keep_nucleus(logits, self.top_p)
        noise = torch.zeros(logits.shape)
        # Tokens after a row's stop token are discarded, so nothing is drawn for them.
        self.prompt_length = input_ids.shape[1] if self.prompt_length is None else self.prompt_length
        ended = torch.isin(input_ids[:, self.prompt_length :], self.stops).any(1).tolist()
        for i, (request, generator) in enumerate(zip(self.requests, self.generators)):
            if request.temperature > 0 and not ended[i]:
                noise[i] = -torch.empty(logits.shape[1]).exponential_(generator=generator).log()
        return logits + noise.to(logits.device)  # type: ignore[return-value]


def keep_nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Logits with −inf outside each row's smallest set of tokens whose probability reaches top_p."""
    ordered, order = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    outside = probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(outside.gather(-1, order.argsort(-1)), float("-inf"))


def load(job: Job[SampleRollouts], device: torch.device, stops: list[int]) -> "TransformersEngine":
    """The engine with the weights of the job's input `policy`; generation ends at the tokens `stops`."""
    kernel = loading.attention(job, device)
    return TransformersEngine(job.input("policy"), job.settings, job.runtime, stops, device, kernel)


class TransformersEngine:
    """Batched generation with left padding; batches hold prompts of similar length."""

    def __init__(
        self,
        policy: Path,
        settings: SampleRollouts,
        runtime: Runtime,
        stops: list[int],
        device: torch.device,
        attention: str = "sdpa",
    ) -> None:
        self.tokenizer = loading.load_tokenizer(policy)
        self.model = loading.load_policy(policy, settings.dtype, device, attention).eval()
        # `generate` takes whatever its caller does not set, such as a repetition penalty, from the model's own file.
        # Samples must follow the policy's distribution under the settings alone; only `stops` comes from that file.
        self.model.generation_config = GenerationConfig()
        self.stops, self.device = stops, device
        self.batch, self.score_tokens = runtime.generate_batch, runtime.score_tokens
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else stops[0]

    def generate(self, requests: Iterable[Request]) -> Iterator[dict[int, Response]]:
        """Responses by the position of their request, batch by batch; see Engine."""
        requests = list(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
        for start in range(0, len(order), self.batch):
            indices = order[start : start + self.batch]
            batch = [requests[i] for i in indices]
            completions = self._batch(batch)
            sums = self._logprobs(batch, completions)
            yield {
                i: Response(ids, "stop" if ids and ids[-1] in self.stops else "length", value)
                for i, ids, value in zip(indices, completions, sums)
            }

    def _batch(self, requests: list[Request]) -> list[list[int]]:
        longest = max(len(request.prompt_ids) for request in requests)
        ids = torch.full((len(requests), longest), self.pad)
        attention = torch.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, longest - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention[i, longest - len(request.prompt_ids) :] = 1
        with torch.no_grad():
            generated = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=attention.to(self.device),
                logits_processor=LogitsProcessorList([PerRowSampling(requests, self.stops, self.device)]),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(request.max_new_tokens for request in requests),
                    eos_token_id=self.stops,
                    pad_token_id=self.pad,
                ),
            )
        return [self._until_stop(row) for row in generated[:, longest:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        for position, token in enumerate(ids):
            if token in self.stops:
                return ids[: position + 1]
        return ids

    def _logprobs(self, requests: list[Request], completions: list[list[int]]) -> list[float | None]:
        sequences = [(request.prompt_ids, ids) for request, ids in zip(requests, completions)]
        sums: list[float | None] = [None] * len(sequences)
        wanted = [i for i, request in enumerate(requests) if request.logprob]
        lengths = [sum(map(len, sequences[i])) for i in wanted]
        for positions in forward.batches_by_length(lengths, self.score_tokens):
            batch = [wanted[position] for position in positions]
            values = forward.token_logprobs(self.model, [sequences[i] for i in batch], self.pad, self.device)
            for i, value in zip(batch, values):
                sums[i] = value
        return sums
