"""Memory of one process of a step, in bytes by part, at the moment that needs most. Pure functions; no torch.

What is counted is what this project's stages, transformers 5.23 and TRL 1.16 hold; tests/unit/test_memory.py holds it
against real tensors. Activations follow Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), which adds up what
each operation keeps for its backward pass, done here for RMSNorm, grouped queries, a gated feed-forward network and
attention kernels that keep no matrix of scores.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scripts.lib.kinds.trainer import Lora
from scripts.lib.planning.model_shape import Shape

Parts = dict[str, int]

BYTES = {"float32": 4, "bfloat16": 2}
# 4 bits a weight and a scale for every 64: 0.56 with scales in float32, 0.52 with scales quantized again (Dettmers et
# al. 2023, section 3).
NF4 = 0.55
# TRL projects to the vocabulary in tiles of so many tokens and so many words (trl/kernels/chunked_logprob.py and
# trl/trainer/utils.py), so that training never holds all logits.
TILE_TOKENS, TILE_WORDS = 4096, 32_768
# Float32 tiles beside the tile itself while torch's own operations compute its gradient, where there is no Triton; as
# measured, of which seven can be counted in the kernel's source.
TILE_COPIES = 8
# Elements that DeepSpeed's ZeRO-3 keeps gathered by default (stage3_max_live_parameters).
GATHERED = 1_000_000_000
GIB = 2**30
# A CUDA context with the workspaces of cuBLAS and NCCL, which is an assumption; and torch with its libraries in the
# memory of the host, measured as .4 (scoring) to .55 GiB (training) on the processor.
CONTEXT, LIBRARIES = GIB, 5 * GIB // 8


@dataclass(frozen=True)
class Training:
    """A training step: `rows` sequences of `length` tokens in one forward pass of one of `processes` processes.

    With `packed` a sequence is several conversations that must not see each other.
    `lora` is the configuration's block or None; `accumulated` says that gradients of earlier passes are there already;
    `gate` that the step compares itself with its reference first; `scored` are padded tokens of a scoring batch after
    the training, of a reward model.
    """

    shape: Shape
    rows: int
    length: int
    dtype: str
    processes: int = 1
    sharding: str = "data"
    lora: Lora | None = None
    checkpointing: bool = False
    packed: bool = False
    attention: str = "auto"
    accumulated: bool = False
    scalar_head: bool = False
    gate: bool = False
    scored: int = 0
    gpu: bool = True

    @property
    def mask(self) -> bool:
        """Whether attention is told where sequences end: those that are padded to one length, or packed into one."""
        return self.rows > 1 or self.packed

    @property
    def span(self) -> int:
        """Tokens that a mask is as wide as: a sequence, or where they are packed, end to end, all of a pass."""
        return self.rows * self.length if self.packed else self.length

    @property
    def arithmetic(self) -> str:
        """float32; bfloat16 for weights that are bfloat16; autocast for float32 weights under bfloat16 arithmetic."""
        if self.dtype == "bfloat16" and self.sharding == "data" and self.lora is None:
            return "autocast"
        return self.dtype

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.shape.parameters(self.scalar_head)

    @property
    def trainable(self) -> int:
        """Parameters that are trained."""
        if self.lora is None:
            return self.parameters
        return self.shape.adapters(self.lora.r, self.lora.targets) + self.scalar_head * self.shape.hidden_size


def training(step: Training) -> Parts:
    """Bytes on one device by part, at the moment of a training step that needs most."""
    return largest(_moments(step))


def largest(moments: Iterable[Parts]) -> Parts:
    """The moment that needs most, without empty parts."""
    return {part: size for part, size in max(moments, key=lambda parts: sum(parts.values())).items() if size}


def weights(step: Training) -> int:
    """Bytes of all weights of one copy of the model, before they are spread."""
    each = BYTES[step.dtype] if step.lora or step.sharding != "data" else 4
    if step.lora is None:
        return each * step.parameters
    frozen = each * step.parameters
    if step.lora.quantization == "nf4":
        frozen -= round((each - NF4) * step.shape.linear_parameters())
    return frozen + _adapter_bytes(step) * step.trainable


def _adapter_bytes(step: Training) -> int:
    """peft keeps adapters in float32 whatever the frozen weights are; DeepSpeed casts the whole model."""
    return 4 if step.sharding == "data" else BYTES[step.dtype]


def static(step: Training) -> Parts:
    """Bytes of weights, gradients and optimizer states on one device, and of what stands beside them all the time.

    AdamW keeps two float32 moments. DeepSpeed keeps float32 weights too and spreads them (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 3.1): ZeRO-2 gradients and optimizer states, ZeRO-3 weights as well. Gradients are added
    up in float32 (config/deepspeed).
    """
    trainable, n, each = step.trainable, step.processes, BYTES[step.dtype]
    if step.sharding == "data":
        # Of several processes torch holds the gradients twice: once by parameter, once in buckets to be averaged.
        return {
            "weights": weights(step),
            "gradients": 4 * trainable,
            "optimizer": 8 * trainable,
            "copies": 4 * trainable if n > 1 else 0,
        }
    whole, zero3 = weights(step), step.sharding == "zero3"
    gathered = min(whole, GATHERED * each) if zero3 else 0
    return {
        "weights": whole // n if zero3 else whole,
        "gradients": 4 * trainable // n,
        "optimizer": 12 * trainable // n,
        "copies": each * min(trainable, step.shape.hidden_size**2) + gathered,  # transformers' "auto" for the bucket
    }


def _moments(step: Training) -> Iterable[Parts]:
    """Bytes by part where the loss is turned round, in the backward pass, at its end, and before and after training."""
    shape, always = step.shape, static(step)
    tokens = step.rows * step.length
    context = {"libraries": CONTEXT if step.gpu else LIBRARIES}
    base = {**context, "weights": always["weights"], "optimizer": always["optimizer"]}
    # Without gradients of earlier passes there are none yet where activations are largest; as they grow, those go.
    early = always["gradients"] if step.accumulated or step.sharding != "data" else 0
    casts = 2 * (shape.linear_parameters()) if step.arithmetic == "autocast" else 0
    stored = activations(step)
    layer = layer_activations(step)
    head = 0 if step.lora or step.scalar_head else 4 * shape.vocabulary * shape.hidden_size  # its gradient, float32
    at_loss = stored + (0 if step.scalar_head else 4 * tokens * shape.hidden_size)
    yield {
        **base,
        "gradients": early + head,
        "activations": at_loss,
        "logits": 0 if step.scalar_head else tile(step),
        "copies": always["copies"] + casts,
    }
    recomputed = layer + casts // shape.layers if step.checkpointing else 0
    yield {
        **base,
        "gradients": early + head,
        "activations": stored + recomputed + _working(step),
        "copies": always["copies"] + (0 if step.checkpointing else casts),
    }
    # Then the embedding's own gradient, or a float32 copy of gradients that DeepSpeed's optimizer takes.
    last = 0 if step.lora else 4 * shape.vocabulary * shape.hidden_size
    copied = 4 * step.trainable // step.processes if step.sharding != "data" else 0
    yield {
        **base,
        "gradients": always["gradients"],
        "activations": stored // shape.layers,
        "copies": always["copies"] + max(last, copied),
    }
    if step.gate:  # a row at a time, in the arithmetic of training
        one = _forward(shape, step.length, step.length, 2 if step.dtype == "bfloat16" else 4, True)
        yield {**base, **one, "copies": always["copies"] + casts}
    if step.scored:
        yield {**base, **_forward(shape, step.scored, step.length, 4, False), "copies": always["copies"]}


def tile(step: Training) -> int:
    """Bytes of the logits that training holds at once, whatever the vocabulary: one tile, and torch's copies of it.

    On a GPU Triton folds a tile in place, and only scored positions are projected; all of them are assumed to be.
    """
    shape, each = step.shape, BYTES[step.dtype]
    tokens = min(step.rows * step.length, TILE_TOKENS)
    if step.gpu:
        return each * tokens * TILE_WORDS + each * TILE_WORDS * shape.hidden_size
    return (each + 4 * TILE_COPIES) * tokens * min(shape.vocabulary, TILE_WORDS)


def layer_activations(step: Training) -> int:
    """Bytes that one block keeps for its backward pass.

    A norm keeps what comes in, in float32, and the same normed if it is trained. A linear layer that is trained, or has
    an adapter, keeps what comes in; those that take the same share it, but for the bfloat16 copy that autocast makes
    for each. Attention keeps queries, keys, values, its result, and a number for each head; the gate what comes in,
    what comes out, and the other branch.
    """
    shape, tokens = step.shape, step.rows * step.length
    hidden, inner, queries = shape.hidden_size, shape.intermediate_size, shape.queries
    # With a mask sdpa takes keys and values repeated to the number of queries.
    masked = step.mask and step.attention != "flash_attention_2"
    keys = queries if masked or step.attention == "eager" else shape.keys
    each = 4 if step.arithmetic == "float32" else 2
    kept = [name for name in shape.linears() if step.lora is None or _adapted(step.lora, name)]
    copies = step.dtype == "bfloat16" and step.sharding == "data"
    into = 0
    for group, width in ((("q_proj", "k_proj", "v_proj"), hidden), (("gate_proj", "up_proj"), hidden)):
        members = sum(name in kept for name in group)
        into += width * (members if copies else min(members, 1))
    into += inner * ("down_proj" in kept) + queries * (copies and step.lora is not None and "o_proj" in kept)
    normed = 0 if step.lora else 2 * hidden * _stream(step)
    ranks = step.lora.r * len(kept) if step.lora else 0
    row = 8 * hidden + normed + each * (into + 2 * queries + 2 * keys + 3 * inner + ranks) + 4 * shape.heads
    return tokens * (row + step.span * _score_bytes(step, masked))


def _adapted(lora: Lora, name: str) -> bool:
    return name in lora.targets or "all-linear" in lora.targets


def _stream(step: Training) -> int:
    """Bytes of a number on its way from block to block."""
    return 2 if step.arithmetic == "bfloat16" else 4


def _score_bytes(step: Training, masked: bool) -> int:
    """Bytes for each pair of positions that one block keeps: a mask as sdpa wants it, or eager attention's softmax."""
    each = 4 if step.arithmetic == "float32" else 2
    if step.attention == "eager":
        return step.shape.heads * (4 if each == 4 else 4 + each)
    return each if masked else 0


def activations(step: Training) -> int:
    """Bytes that the forward pass keeps: every block, or under checkpointing what comes into it; and the last norm."""
    shape, tokens = step.shape, step.rows * step.length
    stream = _stream(step)
    last = (4 + stream * (1 if step.lora else 2)) * shape.hidden_size * tokens
    if step.checkpointing:
        mask = tokens * step.span if step.mask else 0
        return shape.layers * stream * shape.hidden_size * tokens + last + mask
    return shape.layers * layer_activations(step) + last


def _working(step: Training) -> int:
    """Bytes of gradients of activations on their way through one block: its widest part and the stream."""
    each = 2 if step.arithmetic == "bfloat16" else 4
    return each * step.rows * step.length * (2 * step.shape.intermediate_size + 2 * step.shape.hidden_size)


def _forward(shape: Shape, tokens: int, longest: int, each: int, logits: bool) -> Parts:
    """Bytes of a forward pass without gradients over `tokens` padded tokens: one block at work, and all logits.

    Log-probabilities are taken row by row, in float32 (models/forward.py). A mask is kept as truth values and as
    numbers.
    """
    tokens = max(tokens, longest)
    width = 3 * shape.intermediate_size + 4 * shape.hidden_size
    words = shape.vocabulary if logits else 0
    copied = (4 if each == 4 else 8) * longest * words
    return {
        "activations": each * tokens * width + (1 + each) * tokens * longest,
        "logits": each * tokens * words + copied,
    }


def scoring(
    shape: Shape, tokens: int, longest: int, dtype: str, scalar_head: bool, gpu: bool, nf4: bool = False
) -> Parts:
    """Bytes of a scoring step by part; a batch has at most `tokens` padded tokens, or one row of `longest`.

    With `nf4` the linear layers are held in 4 bits, as a run that trains on such weights has its reference scored.
    """
    each = BYTES[dtype]
    held = {"libraries": CONTEXT if gpu else LIBRARIES, "weights": each * shape.parameters(scalar_head)}
    held["weights"] -= round(nf4 * (each - NF4) * shape.linear_parameters())
    return largest([{**held, **_forward(shape, tokens, longest, each, not scalar_head)}])


def cache_per_token(shape: Shape, dtype: str) -> int:
    """Bytes that one token leaves in the cache of keys and values."""
    return 2 * BYTES[dtype] * shape.layers * shape.keys


def sampling(
    shape: Shape, rows: int, prompt: int, new: int, dtype: str, nucleus: bool, scored: int, gpu: bool
) -> Parts:
    """Bytes of sampling by transformers: `rows` responses at once of at most `new` tokens to at most `prompt`.

    A step of generation holds its logits as they come, in float32, by temperature and with noise; a nucleus sorts
    them. `scored` are the padded tokens of a batch whose log-probabilities are recorded, 0 for none.
    """
    each, length = BYTES[dtype], prompt + new
    held = {"libraries": CONTEXT if gpu else LIBRARIES, "weights": each * shape.parameters()}
    cache = cache_per_token(shape, dtype) * rows * length
    growing = 2 * cache // shape.layers  # one layer's keys and values are copied as they grow by a token
    logits = rows * shape.vocabulary * (each + 4 * (10 if nucleus else 5) + (0 if gpu else 4))
    moments = [
        {**held, "cache": cache, "logits": logits, "copies": growing},
        {
            **held,
            "cache": cache_per_token(shape, dtype) * rows * prompt,
            **_forward(shape, rows * prompt, prompt, each, False),
        },
    ]
    if scored:
        moments.append({**held, **_forward(shape, scored, length, each, True)})
    return largest(moments)


# What vLLM sets aside is not less than this: tokens of one pass and sequences whose logits are float32 (its defaults on
# a GPU of H100's class; on smaller ones 8192 and 256).
VLLM_TOKENS, VLLM_SEQUENCES = 16384, 1024


def vllm(shape: Shape, length: int, dtype: str, parallel: int, cache_gib: int | None = None) -> Parts:
    """Bytes that vLLM needs on each of `parallel` GPUs for one sequence of `length` tokens; it takes all it may.

    On the processor its cache is `cache_gib` (`runtime.vllm_cpu_cache_gib`).
    """
    each = BYTES[dtype]
    width = 3 * shape.intermediate_size // parallel + 4 * shape.hidden_size
    parts = {
        "libraries": LIBRARIES if cache_gib else CONTEXT,
        "weights": each * shape.parameters() // parallel,
        "cache": cache_gib * GIB
        if cache_gib
        else cache_per_token(shape, dtype) * length // min(parallel, shape.kv_heads),
        "activations": each * VLLM_TOKENS * width,
        "logits": 4 * VLLM_SEQUENCES * shape.vocabulary,
    }
    return largest([parts])
