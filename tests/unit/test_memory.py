"""Memory by part against what real tensors take: parameters, a training step's state, and what a forward pass keeps."""

import json
import random
import subprocess
import sys

import pytest
import torch
import transformers

from scripts import make_base
from scripts.lib.data import world
from scripts.lib.kinds.bases import BaseGguf, BaseWorld, Shape
from scripts.lib.kinds.pairing import ScoreReference
from scripts.lib.kinds.runs import TrainDpo
from scripts.lib.kinds.sft import TrainSft
from scripts.lib.kinds.trainer import Lora
from scripts.lib.planning import memory, model_shape
from scripts.lib.planning.cards.base import CONTEXT
from scripts.lib.planning.memory import Training
from tests.conftest import ROOT
from tests.unit.conftest import RUNTIME, WORDS

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "layers": 32,
    "heads": 32,
    "kv_heads": 8,
    "vocabulary": 128256,
}
QWEN = {"hidden_size": 3584, "intermediate_size": 18944, "layers": 28, "heads": 28, "kv_heads": 4, "vocabulary": 152064}
SMOL = {"hidden_size": 576, "intermediate_size": 1536, "layers": 30, "heads": 9, "kv_heads": 3, "vocabulary": 49152}
SMALL = {"hidden_size": 96, "intermediate_size": 256, "layers": 4, "heads": 6, "kv_heads": 2, "vocabulary": 500}
SMALL |= {"tied": True}
COUNTS = {
    "Llama-3-8B": ("Llama", LLAMA, 8_030_261_248),
    "Qwen2.5-7B": ("Qwen2", QWEN, 7_615_616_512),
    "Qwen3-like": ("Qwen3", {**SMOL, "head_size": 128}, None),
    "SmolLM2-135M": ("Llama", {**SMOL, "tied": True}, 134_515_008),
}


def shape_of(sizes):
    shape = model_shape.of_block(BaseGguf(kind="gguf", package="there", file="a.gguf", shape=Shape(**sizes)))
    assert shape is not None
    return shape


def config_of(kind, sizes):
    keys = {name: model_shape.KEYS[key] for name, key in zip(sizes, sizes)}
    return getattr(transformers, f"{kind}Config")(**{keys[name]: value for name, value in sizes.items()})


# Parameters


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_that_transformers_counts(name):
    kind, sizes, published = COUNTS[name]
    config = config_of(kind, {"tied": False, **sizes})
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        reward = getattr(transformers, f"{kind}ForSequenceClassification")(config_of(kind, {"tied": False, **sizes}))
    shape = model_shape.of_config(json.loads(config.to_json_string()))
    assert shape.parameters() == model.num_parameters()
    assert published in (None, shape.parameters())
    reward.score = torch.nn.Linear(sizes["hidden_size"], 1, bias=False, device="meta")
    assert shape.parameters(scalar_head=True) == reward.num_parameters()


def test_a_shape_of_the_configuration_leaves_out_only_biases():
    assert shape_of(LLAMA).parameters() == 8_030_261_248
    missing = 7_615_616_512 - shape_of(QWEN).parameters()
    assert missing == 28 * (3584 + 2 * 512)
    assert missing / 7_615_616_512 < 2e-5


def test_adapters_are_those_that_peft_adds():
    peft = pytest.importorskip("peft")
    for targets in ("all-linear", ["q_proj", "down_proj"]):
        model = transformers.LlamaForCausalLM(config_of("Llama", SMALL))
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM"))
        counted = shape_of(SMALL).adapters(8, [targets] if isinstance(targets, str) else targets)
        assert counted == adapted.get_nb_trainable_parameters()[0]


def test_of_a_mixture_of_experts_nothing_is_said():
    config = transformers.MixtralConfig(num_hidden_layers=1)
    assert model_shape.of_config(json.loads(config.to_json_string())) is None


def test_the_vocabulary_of_a_world_base_is_that_of_its_tokenizer():
    block = BaseWorld(kind="world", hidden_size=128, layers=2, heads=4)
    assert model_shape.of_block(block).vocabulary == len(make_base.make_tokenizer(world.corpus(2000, 2)))
    assert CONTEXT == make_base.CONTEXT


# A training step's state


def test_weights_gradients_and_moments_after_a_step_of_adamw():
    model = transformers.LlamaForCausalLM(config_of("Llama", SMALL))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, SMALL["vocabulary"], (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    state = [value for entry in optimizer.state.values() for value in entry.values() if value.numel() > 1]
    real = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimizer": sum(value.nbytes for value in state),
        "copies": 0,
    }
    assert memory.static(Training(shape_of(SMALL), 2, 16, "float32", gpu=False)) == real
    assert memory.static(Training(shape_of(SMALL), 2, 16, "bfloat16", gpu=False)) == real  # autocast, float32 weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deepspeed_divides_what_its_stage_divides(dtype):
    each, count = memory.BYTES[dtype], shape_of(LLAMA).parameters()
    two = memory.static(Training(shape_of(LLAMA), 2, 16, dtype, processes=8, sharding="zero2"))
    three = memory.static(Training(shape_of(LLAMA), 2, 16, dtype, processes=8, sharding="zero3"))
    assert (two["weights"], three["weights"]) == (each * count, each * count // 8)
    for parts in (two, three):
        assert parts["gradients"] == 4 * count // 8
        assert parts["optimizer"] == 12 * count // 8
    alone = memory.static(Training(shape_of(LLAMA), 2, 16, "float32", processes=1, sharding="zero2"))
    plain = memory.static(Training(shape_of(LLAMA), 2, 16, "float32"))
    assert sum(alone.values()) > sum(plain.values())  # one process saves nothing by ZeRO


def test_frozen_weights_have_neither_gradients_nor_moments():
    shape, lora = shape_of(LLAMA), Lora(r=16)
    parts = memory.static(Training(shape, 2, 16, "bfloat16", lora=lora))
    adapters = shape.adapters(16, ["all-linear"])
    assert parts["weights"] == 2 * shape.parameters() + 4 * adapters
    assert (parts["gradients"], parts["optimizer"]) == (4 * adapters, 8 * adapters)
    small = memory.static(Training(shape, 2, 16, "bfloat16", lora=lora.model_copy(update={"quantization": "nf4"})))
    rest = shape.parameters() - shape.linear_parameters()  # embedding, head and norms stay as they are
    assert small["weights"] == pytest.approx(0.55 * shape.linear_parameters() + 2 * rest + 4 * adapters)


# What a forward pass keeps


def kept(model, ids, where, dtype):
    """Bytes of all distinct tensors that TRL's loss on token log-probabilities keeps, beside the model's own."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
            out = model(input_ids=ids, **where, labels=ids, fused_lm_head=True, use_cache=False)
        loss = out.log_probs.sum()
    total = sum(storage.nbytes() for storage in held.values())
    del loss
    return total


def measured(arithmetic, rows, length, sizes, attention="sdpa", checkpointing=False, lora=None, packed=False):
    from trl.trainer.utils import add_fused_lm_head

    model = transformers.LlamaForCausalLM(config_of("Llama", sizes))
    model.to(torch.float32 if arithmetic in ("float32", "autocast") and not lora else torch.bfloat16)
    if arithmetic == "float32":
        model.float()
    model.set_attn_implementation(attention)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    if checkpointing:
        model.gradient_checkpointing_enable()
    if lora:
        import peft

        targets = "all-linear" if lora.targets == ["all-linear"] else lora.targets
        model = peft.get_peft_model(model, peft.LoraConfig(r=lora.r, target_modules=targets, task_type="CAUSAL_LM"))
    ids = torch.randint(0, sizes["vocabulary"], (rows, length))
    mask = torch.ones_like(ids)
    mask[1:, -3:] = 0
    # Packed: one row, whose positions begin anew after a third.
    parts = torch.cat([torch.arange(length // 3), torch.arange(length - length // 3)])[None]
    return kept(model.train(), ids, {"position_ids": parts} if packed else {"attention_mask": mask}, arithmetic)


def forecast(arithmetic, rows, length, sizes, attention="auto", checkpointing=False, lora=None, packed=False):
    sharding = "zero2" if arithmetic == "bfloat16" else "data"
    dtype = "float32" if arithmetic == "float32" else "bfloat16"
    step = Training(
        shape_of(sizes),
        rows,
        length,
        dtype,
        1,
        sharding,
        lora,
        checkpointing,
        packed,
        attention,
        accumulated=True,
        gpu=False,
    )
    casts = 2 * step.shape.linear_parameters() if step.arithmetic == "autocast" and not checkpointing else 0
    return memory.activations(step) + casts


@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("rows", "length", "changed"),
    [
        (4, 200, {}),
        (1, 300, {}),
        (2, 64, {"kv_heads": 6, "intermediate_size": 512}),
        (3, 100, {"layers": 1, "heads": 12}),
    ],
)
def test_activations_are_what_autograd_keeps(arithmetic, attention, rows, length, changed):
    sizes = {**SMALL, **changed}
    real = measured(arithmetic, rows, length, sizes, attention)
    assert forecast(arithmetic, rows, length, sizes, attention) == pytest.approx(real, rel=0.04)


@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(("rows", "length"), [(4, 200), (1, 300)])
def test_under_checkpointing_only_what_comes_into_a_block_is_kept(arithmetic, rows, length):
    real = measured(arithmetic, rows, length, SMALL, checkpointing=True)
    # The mask in truth values is kept too, but not by autograd, so no hook sees it.
    mask = rows * length * length if rows > 1 else 0
    said = forecast(arithmetic, rows, length, SMALL, checkpointing=True)
    assert said - mask == pytest.approx(real, rel=0.05)
    assert said < 0.2 * forecast(arithmetic, rows, length, SMALL)


@pytest.mark.parametrize("arithmetic", ["float32", "autocast", "bfloat16"])
def test_a_block_of_several_rows_needs_a_mask_as_padded_rows_do(arithmetic):
    real = measured(arithmetic, 1, 300, SMALL, packed=True)
    assert forecast(arithmetic, 1, 300, SMALL, packed=True) == pytest.approx(real, rel=0.04)
    assert forecast(arithmetic, 1, 300, SMALL) < 0.97 * real


@pytest.mark.parametrize("arithmetic", ["float32", "autocast"])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "v_proj"]], ids=len)
def test_activations_with_adapters(arithmetic, targets):
    pytest.importorskip("peft")
    lora = Lora(r=8, targets=targets)
    real = measured(arithmetic, 4, 200, SMALL, lora=lora)
    assert forecast(arithmetic, 4, 200, SMALL, lora=lora) == pytest.approx(real, rel=0.04)


def test_training_never_holds_all_logits_and_scoring_does():
    step = Training(shape_of(LLAMA), 8, 4096, "bfloat16")
    assert memory.tile(step) < 2 * 4096 * 32768 + 2**30
    logits = memory.scoring(shape_of(LLAMA), 8 * 4096, 4096, "bfloat16", False, True)["logits"]
    assert logits > 2 * 8 * 4096 * 128256


def test_the_cache_of_generation_is_what_transformers_keeps():
    model = transformers.LlamaForCausalLM(config_of("Llama", SMALL)).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.zeros((3, 40), dtype=torch.long), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.cache_per_token(shape_of(SMALL), "float32") * 3 * 40 == real


# Whole stages

BIG = {"hidden_size": 512, "intermediate_size": 1376, "layers": 8, "heads": 8, "kv_heads": 2, "vocabulary": 32000}
BIG |= {"tied": True}
TRAINED = {"learning_rate": 1e-4, "epochs": 1, "batch_size": 8, "schedule": "cosine", "warmup_ratio": 0.0}
TRAINED |= {"max_length": 512, "seed": 1, "dtype": "float32"}


def peak(stage, settings, output, **inputs):
    """Bytes at the peak of a stage in a process of its own.

    A shell starts it, because a process begins with the peak of the one that it is forked from.
    """
    runtime = {**RUNTIME, "score_tokens": 4096}
    words = [sys.executable, "-m", f"scripts.{stage}", "--settings", settings.model_dump_json()]
    words += ["--runtime", json.dumps(runtime), "--output", str(output)]
    for name, path in inputs.items():
        words += [f"--{name}", str(path)]
    done = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(output.with_name(f"{output.stem}.run.json").read_text())
    return facts["peak_memory_mib"] * 2**20


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, save_model, write):
    """Folder with a model that dominates, one that does not, and tables of rows of about 240 tokens."""
    from scripts.lib.data import tables
    from scripts.lib.data.schemas.pairs import PAIRS
    from scripts.lib.models import chat

    folder, drawn = tmp_path_factory.mktemp("made"), random.Random(1)
    save_model(folder / "big", tokenizer, **{model_shape.KEYS[key]: value for key, value in BIG.items()})
    save_model(folder / "tiny", tokenizer)
    pairs, conversations, longest = [], [], 0
    for i in range(16):
        asked, *answers = (" ".join(drawn.choices(WORDS, k=n)) for n in (56, 180, 175))
        messages = [{"role": "user", "content": asked}]
        row = dict.fromkeys(PAIRS) | {"pair_id": f"{i:064d}", "prompt_id": tables.prompt_id(messages)}
        row |= {"messages": messages, "chosen": answers[0], "rejected": answers[1]}
        row["prompt_ids"] = chat.prompt_ids(tokenizer, messages)
        for side, answer in zip(("chosen", "rejected"), answers):
            row[f"{side}_ids"] = chat.completion_ids(tokenizer, messages, answer)
        longest = max(longest, len(row["prompt_ids"]) + len(row["chosen_ids"]))
        pairs.append(row)
        turns = [*messages, {"role": "assistant", "content": answers[i % 2]}]
        conversations.append({"conversation_id": row["pair_id"], "prompt_id": row["prompt_id"], "messages": turns})
    write(folder / "pairs.parquet", pairs, "PAIRS")
    write(folder / "talks.parquet", [{"source": "test", **row} for row in conversations], "CONVERSATIONS")
    return folder, longest


@pytest.mark.long
def test_whole_stages_take_what_is_forecast(made):
    folder, longest = made
    shape = model_shape.of_config(json.loads((folder / "big" / "config.json").read_text()))
    sft = TrainSft(kind="train", base="a", dataset="b", **TRAINED)
    dpo = TrainDpo(start="a", reference="b", sources=[("pairs", 1.0)], **TRAINED)
    step = Training(shape, 4, longest, "float32", accumulated=True, gpu=False)
    expected = {
        "score": memory.scoring(shape, 4096, longest, "float32", False, False),
        "sft": memory.training(step),
        "dpo": memory.training(Training(shape, 8, longest, "float32", accumulated=True, gpu=False)),
    }
    real = {}
    for size in ("tiny", "big"):
        model, reference = folder / size, folder / f"{size}_reference.parquet"
        given = {"scorer": model, "pairs": folder / "pairs.parquet"}
        settings = ScoreReference(dtype="float32", quantization=None)
        real[size, "score"] = peak("score_reference", settings, reference, **given)
        given = {"base": model, "dataset": folder / "talks.parquet"}
        real[size, "sft"] = peak("train_sft", sft, folder / f"{size}_sft", **given)
        given = {"start": model, "pairs": folder / "pairs.parquet", "reference": reference}
        real[size, "dpo"] = peak("train_dpo", dpo, folder / f"{size}_dpo", **given)
    for name, parts in expected.items():
        said = sum(parts.values()) - parts["libraries"]
        assert said == pytest.approx(real["big", name] - real["tiny", name], rel=0.1), name
        assert real["tiny", name] < memory.LIBRARIES, name
