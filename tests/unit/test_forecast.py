"""Steps of a configuration: what they will take, and those that are refused because they cannot fit."""

import json
import re

import pytest

from scripts.lib.planning import cluster, fits, forecast
from scripts.lib.planning.config import check_memory, resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.errors import ConfigError
from tests.unit.test_config import given
from tests.unit.test_memory import LLAMA

LENGTHS = {"max_prompt_tokens": 1024, "max_new_tokens": 1024}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "layers": 1, "heads": 4, "kv_heads": 2, "vocabulary": 300}
GATES = "runtime.gradient_checkpointing: true"


def llama(**changes):
    """test_config's configuration on an 8B model, whose every step but those of the changes fits 80 GB."""
    config = given(bases__small={"kind": "gguf", "package": "there", "file": "a.gguf", "shape": dict(LLAMA)})
    config |= {"dtype": "bfloat16", "forecast": {"device_memory_gib": 80.0}}
    config["runs"] = {"main": {**config["runs"]["main"], "dpo": {"max_length": 2048, "batch_size": 128}}}
    config["samplings"] = {"eight": dict(LENGTHS), "judged": {"k": 2, "record_logprobs": True, **LENGTHS}}
    config["sft"]["first"] |= {"max_length": 2048}
    config["rewards"]["bt"] |= {"max_length": 2048}
    config["runtime"] = {
        "train_micro_batch": 1,
        "gradient_checkpointing": True,
        "score_tokens": 8192,
        "generate_batch": 16,
    }
    spread = {"sharding": "zero3", "gpus": 8}
    config["resources"] = {"default": {"mem_mb": 500_000}, "train_sft": dict(spread), "train_reward": dict(spread)}
    config["resources"]["train_dpo"] = dict(spread)
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = config
        for part in parents:
            block = block.setdefault(part, {})
        block[last] = value
    return config


def accepted(config):
    check_memory(resolve(config))


def complaints(config):
    with pytest.raises(ConfigError) as caught:
        accepted(config)
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]


def forecast_of(config):
    plan = Plan(resolve(config))
    return forecast.Forecast(plan), plan


def test_on_a_gpu_every_process_holds_its_tables_where_their_size_is_known():
    def host(**data):
        said, plan = forecast_of(llama(**data))
        path = next(path for path in plan.artifacts(*plan.asked("all")) if plan.maker(path)[0] == "train_sft")
        return said.job(path).host

    rows, known = 1_000_000, llama()
    name = known["sft"]["first"]["dataset"]
    more, less = (host(**{f"datasets__{name}__size": size}) for size in (2 * rows, rows))
    assert more - less == 8 * rows * (200 + 300) * 8  # processes, rows, expected tokens, bytes


def test_blocks_of_one_pass_lie_end_to_end_and_need_a_mask():
    def step(packing, micro=2):
        changes = {"sft__first__packing": packing, "sft__first__batch_size": 32, "runtime__train_micro_batch": micro}
        said, plan = forecast_of(llama(**changes))
        path = next(path for path in plan.artifacts(*plan.asked("all")) if plan.maker(path)[0] == "train_sft")
        return said.training(*plan.maker(path), said.shape("sft/first"))

    apart, packed = step(False), step(True)
    assert (apart.rows, apart.length, apart.span) == (packed.rows, packed.length, 2048) == (2, 2048, 2048)
    assert (packed.span, apart.packed, packed.packed) == (4096, False, True)
    assert [step(packing, 1).mask for packing in (False, True)] == [False, True]


def test_blocks_that_do_not_fit_side_by_side_are_refused_with_fewer_as_the_cure():
    blocks = {"sft__first__packing": True, "sft__first__max_length": 8192, "sft__first__batch_size": 32}
    lines = complaints(llama(**blocks, runtime__train_micro_batch=4, forecast={"device_memory_gib": 40.0}))
    (said,) = (line for line in lines if "train_sft" in line)
    assert said.startswith("runtime.train_micro_batch = 4: ")
    assert said.split("Hint: ")[1].startswith("runtime.train_micro_batch: 2; or ")


# Refusals


def test_eight_gpus_that_share_the_model_fit():
    accepted(llama())
    accepted(llama(resources__train_dpo={"sharding": "zero2", "gpus": 8}))


def test_without_a_device_nothing_is_refused():
    accepted(llama(resources={}, forecast={}))


def test_a_step_that_does_not_fit_is_only_told_of_where_nothing_is_refused(capsys, monkeypatch):
    too_large = llama(resources__train_dpo={}, forecast__refuse=False)
    monkeypatch.setattr(fits, "_fixes", lambda *_: pytest.fail("changes that would help were searched for"))
    accepted(too_large)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "not refused, because forecast.refuse is false: forecast.device_memory_gib = 80.0: train_dpo "
    )
    assert " of 80.0 GiB that there are. Hint: `forecast.refuse: true`" in line
    accepted(llama(forecast__refuse=False))
    assert capsys.readouterr().err == ""


def test_tools_read_a_configuration_whose_steps_do_not_fit(monkeypatch):
    monkeypatch.setattr(fits, "check", lambda *_: pytest.fail("memory was forecast"))
    resolve(llama(resources__train_dpo={}))


def test_full_training_on_one_gpu_is_refused_with_what_would_help():
    (line,) = complaints(llama(resources__train_dpo={}))
    text, _, hint = line.partition(". Hint: ")
    assert text.startswith("resources.train_dpo.sharding = 'data': train_dpo of runs/main/iter1/policy needs ")
    assert text.endswith(" of 80.0 GiB that there are")
    total, parts = re.search(r"needs ([0-9.]+) GiB \((.*)\)", text).groups()
    sizes = {name: float(size) for name, size in (part.split(" ") for part in parts.split(", "))}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert float(total) == pytest.approx(sum(sizes.values()), abs=0.3)
    # 8,030,261,248 parameters in float32, and two moments of each.
    assert (sizes["weights"], sizes["optimizer"]) == (29.9, 59.8)
    changes = hint.removesuffix(".").split("; or ")
    assert "resources.train_dpo: {sharding: zero3, gpus: 4}" in changes
    assert "runs.main.dpo.lora: {r: 16}" in changes
    assert "runs.main.dpo.lora: {quantization: nf4}" in changes
    assert not any("max_length" in change or change == GATES for change in changes)  # weights alone are too large


@pytest.mark.parametrize(
    "changed",
    [
        {"resources__train_dpo": {"sharding": "zero3", "gpus": 4}},
        {"resources__train_dpo": {"sharding": "zero2", "gpus": 4}},
        {"resources__train_dpo": {}, "runs__main__dpo__lora": {"r": 16}},
        {"resources__train_dpo": {}, "runs__main__dpo__lora": {"quantization": "nf4"}},
    ],
    ids=str,
)
def test_what_a_hint_names_does_fit(changed):
    accepted(llama(**changed))


def test_one_process_saves_nothing_by_zero():
    (line,) = complaints(llama(resources__train_dpo={"sharding": "zero3"}))
    assert line.startswith("resources.train_dpo.sharding = 'zero3': ")


def test_rows_that_are_too_many_are_blamed_on_the_micro_batch():
    (line,) = [
        line
        for line in complaints(llama(runtime__train_micro_batch=16, runtime__gradient_checkpointing=False))
        if "train_dpo" in line
    ]
    assert line.startswith("runtime.train_micro_batch = 16: train_dpo ")
    smaller = int(re.search(r"runtime.train_micro_batch: ([0-9]+)(?:;|\.$)", line)[1])
    said, plan = forecast_of(llama(runtime__train_micro_batch=smaller, runtime__gradient_checkpointing=False))
    room = 80 * 2**30
    assert sum(said.job(plan.policy("runs/main/iter1")).parts.values()) <= room
    said, plan = forecast_of(
        llama(forecast={}, runtime__train_micro_batch=2 * smaller, runtime__gradient_checkpointing=False)
    )
    assert sum(said.job(plan.policy("runs/main/iter1")).parts.values()) > room


def test_sampling_on_a_small_gpu_is_refused():
    small = llama(forecast={"device_memory_gib": 16})
    lines = complaints(small)
    sampled = [line for line in lines if "sample_rollouts" in line and line.startswith("runtime.generate_batch")]
    assert sampled
    assert "engine: vllm with runtime.vllm_tensor_parallel: 2" in sampled[0]
    for sampling in small["samplings"].values():
        sampling["engine"] = "vllm"
    sampled = [line for line in complaints(small) if line.startswith("runtime.vllm_tensor_parallel = 1")]
    assert len(sampled) == 1
    assert sampled[0].endswith(" of 14.4 GiB that there are. Hint: runtime.vllm_tensor_parallel: 2.")
    small["runtime"]["vllm_tensor_parallel"] = 2
    assert not [line for line in complaints(small) if "sample_rollouts" in line]


def test_scoring_is_blamed_on_its_batch():
    lines = complaints(llama(runtime__score_tokens=400_000))
    assert {line.split(" = ")[0] for line in lines} == {"runtime.score_tokens"}
    assert all(re.search(r"Hint: runtime.score_tokens: (200000|100000)\.$", line) for line in lines)


def test_a_node_must_hold_what_its_processes_load():
    lines = complaints(llama(resources__train_dpo={"sharding": "zero3", "gpus": 8, "mem_mb": 100_000}))
    (line,) = lines
    needed = int(re.search(r"resources.train_dpo.mem_mb = 100000: .* takes ([0-9]+) MiB of a node", line)[1])
    assert needed > 8 * 2 * 8_030_261_248 / 2**20
    accepted(llama(resources__train_dpo={"sharding": "zero3", "gpus": 8, "mem_mb": needed}))


def test_a_machine_without_gpus_is_shared_by_its_processes():
    small = given(bases__small={"kind": "gguf", "package": "there", "file": "a", "shape": dict(SMALL)})
    small["runtime"] = {"device": "cpu", "train_micro_batch": 1}
    accepted({**small, "forecast": {"device_memory_gib": 8}})
    lines = complaints({**small, "forecast": {"device_memory_gib": 8}, "resources": {"train_sft": {"processes": 16}}})
    assert lines and all("train_sft" in line and "of 512 MiB" in line for line in lines)


# Shapes


def made(plan, base, config, **settings):
    folder = plan.base(base)
    artifact.write_text(forecast.Path(folder) / "config.json", json.dumps(config))
    artifact.write_json(artifact.manifest_path(forecast.Path(folder)), {"settings": settings})


def config_json(sizes):
    return {fits.model_shape.KEYS[key]: value for key, value in sizes.items()}


def test_the_model_that_was_made_tells_its_shape(tmp_path):
    unsaid = given(
        bases__small={"kind": "gguf", "package": "there", "file": "a.gguf"}, results=str(tmp_path / "results")
    )
    said, plan = forecast_of(unsaid)
    assert said.job(plan.policy("sft/first")).parts is None
    assert any("memory not known" in line for line in said.lines([plan.policy("sft/first")]))
    made(plan, "small", config_json(SMALL), kind="gguf", package="there", file="a.gguf")
    said, plan = forecast_of(unsaid)
    assert said.shape("sft/first") == fits.model_shape.of_config(config_json(SMALL))
    made(plan, "small", config_json(SMALL), kind="gguf", package="there", file="other.gguf")
    assert forecast_of(unsaid)[0].shape("runs/main/iter3") is None  # that is another model's


def test_a_shape_that_is_not_the_models_is_refused(tmp_path):
    block = {"kind": "gguf", "package": "there", "file": "a.gguf", "shape": {**SMALL, "layers": 7}}
    config = given(bases__small=block, results=str(tmp_path / "results"))
    plan = Plan(resolve(config))
    made(plan, "small", config_json(SMALL), kind="gguf", package="there", file="a.gguf")
    (line,) = complaints(config)
    assert line.startswith("bases.small.shape.layers = 7: the model has 1. Hint: ")
    block["shape"] = dict(SMALL)
    accepted(config)
    made(plan, "small", config_json({**SMALL, "positions": 2048}), kind="gguf", package="there", file="a.gguf")
    block["shape"] = {**SMALL, "positions": 8192}
    assert complaints(config)[0].startswith("bases.small.shape.positions = 8192: the model has 2048. Hint: ")


def test_a_local_folder_tells_its_shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    (tmp_path / "model.safetensors").touch()
    said, _ = forecast_of(given(bases__small={"kind": "folder", "path": str(tmp_path)}))
    assert said.shape("base/small").parameters() == fits.model_shape.of_config(config_json(SMALL)).parameters()


# Tokens and time


def test_tokens_follow_from_sizes_and_expected_lengths():
    rates = {"train_tokens_per_second": 1000, "score_tokens_per_second": 5000, "sample_tokens_per_second": 500}
    config = llama(prompts__asks__size=2500, forecast=rates | {"prompt_tokens": 100, "response_tokens": 200})
    config["datasets"]["choices"]["size"] = 4000
    said, plan = forecast_of(config)
    rollouts = [said.job(path) for path in plan.rollouts("sft/first", "eight", "asks-1")]
    assert [step.tokens for step in rollouts] == [1000 * 8 * 200, 1000 * 8 * 200, 500 * 8 * 200]
    assert rollouts[0].seconds == 1_600_000 / 500
    assert said.job(plan.rewards("sft/first", "eight", "asks-1", "bt")[2]).tokens == 500 * 8 * 300
    dpo = said.job(plan.policy("runs/main/iter2"))
    assert dpo.tokens == 2500 * 2 * 300 * 2  # a pair for each prompt, two sides, two epochs
    assert dpo.seconds == dpo.tokens / 8000  # of eight GPUs
    assert said.job(plan.reward_model("bt")).tokens == 4000 * 2 * 300
    reference = said.job(plan.pair_sources("main", 2)[0].reference)
    assert (reference.tokens, reference.seconds) == (2500 * 2 * 300, 2500 * 2 * 300 / 5000)
    # Three shards run side by side on eight GPUs, iterations one after another.
    shards = [path for n in (1, 2) for path in plan.rollouts(plan.iteration("main", n - 1), "eight", f"asks-{n}")]
    text = " ".join(line.strip() for line in said.lines(shards))
    assert text.endswith(f"; 8M tokens, {forecast.duration(2 * 1_600_000 / 500)}")


@pytest.mark.parametrize(
    ("gpus", "parallel", "waves"),
    # Two whole shards and half of one for each of two iterations, the longest first.
    [(None, 1, 1), (8, 1, 1), (3, 1, 1), (2, 1, 1.5), (1, 1, 2.5), (8, 4, 1.5), (4, 4, 2.5), (2, 4, 2.5)],
)
def test_shards_wait_for_gpus_in_whole_waves(gpus, parallel, waves):
    changes = {"prompts__asks__size": 2500, "runtime__vllm_tensor_parallel": parallel}
    config = llama(**changes, forecast={"sample_tokens_per_second": 500, "response_tokens": 200, "gpus": gpus})
    config["samplings"]["eight"]["engine"] = "vllm"
    said, plan = forecast_of(config)
    shards = [path for n in (1, 2) for path in plan.rollouts(plan.iteration("main", n - 1), "eight", f"asks-{n}")]
    text = " ".join(line.strip() for line in said.lines(shards))
    assert text.endswith(f"; 8M tokens, {forecast.duration(2 * waves * 1_600_000 / 500)}")


def test_without_gpus_or_a_number_shards_run_one_after_another():
    config = given(prompts__asks__size=2500, forecast={"sample_tokens_per_second": 100, "response_tokens": 32})
    config["runtime"] = {"device": "cpu"}
    said, plan = forecast_of(config)
    text = " ".join(line.strip() for line in said.lines(plan.rollouts("sft/first", "eight", "asks-1")))
    assert text.endswith(f"; 640k tokens, {forecast.duration(6400)}")


def test_no_size_and_no_throughput_are_guessed():
    said, plan = forecast_of(llama())
    assert said.job(plan.policy("runs/main/iter1")).seconds is None
    config = llama()
    config["datasets"]["talks"] = {"kind": "files", "type": "conversations", "path": "nowhere"}
    said, plan = forecast_of(config)
    assert said.job(plan.policy("sft/first")).tokens is None
    assert said.lines([plan.policy("sft/first")])[-1].endswith("tokens not known: a data set without a size")


CHOICES = {"kind": "hub", "type": "preferences", "repo": "a/choices", "revision": "a" * 40, "part": [0.0, 0.75]}


def test_what_is_known_is_summed_and_the_rest_is_counted():
    config = llama(prompts__asks__size=1000, forecast={"train_tokens_per_second": 1000})
    config["runs"]["offline"] = {
        "sft": "first",
        "iterations": 1,
        "mix": [{"dataset": "choices", "pairing": "extremes"}],
    }
    config["runs"]["offline"]["dpo"] = config["runs"]["main"]["dpo"]
    config["datasets"]["choices"] = dict(CHOICES)
    said, plan = forecast_of(config)
    steps = [plan.policy(policy) for policy in plan.policies() if policy.startswith("runs/")]
    text = " ".join(line.strip() for line in said.lines(steps))
    assert text.endswith(f"; 6M tokens, {forecast.duration(6_000_000 / 8000)}; and 1 of unknown size")
    config["forecast"]["train_tokens_per_second"] = None
    assert " ".join(forecast_of(config)[0].lines(steps)).endswith("; 6M tokens; and 1 of unknown size")


def test_the_expected_rows_of_a_hub_count_in_the_forecast_and_nowhere_else():
    def step(**keys):
        said, plan = forecast_of(llama(datasets__choices={**CHOICES, **keys}))
        settings = plan.settings_json("curate_data", {"dataset": "choices"})
        fetched = plan.settings_json("fetch_data", {"block": "datasets", "source": "choices"})
        return said.job(plan.reward_model("bt")).tokens, (settings, fetched)

    unsaid, recorded = step()
    assert unsaid is None
    assert step(rows=4000) == (3000 * 2 * 500, recorded)
    assert step(rows=8000) == (6000 * 2 * 500, recorded)
    assert step(rows=8000, size=100)[0] == 100 * 2 * 500


def test_only_steps_that_compute_are_forecast_and_one_line_tells_of_a_rule():
    said, plan = forecast_of(llama())
    jobs = plan.artifacts(*plan.asked("all"))
    text = "\n".join(said.lines(jobs))
    rules = re.findall(r"^([a-z_]+): ", text, re.MULTILINE)
    assert len(rules) == len(set(rules))
    assert set(rules) == {plan.maker(path)[0] for path in jobs} & set(cluster.computing())
    assert " of 80.0 GiB (" in text
    assert "on each of 8 GPUs" in text
    assert max(map(len, text.splitlines())) <= forecast.WIDTH
