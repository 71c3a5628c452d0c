"""The real vLLM, in the environment that `make rollout-env` makes: with CPU kernels where there is no GPU."""

import json
import shutil
import subprocess

import pytest

from scripts import check_engine
from scripts.lib.data import tables
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.data.seeds import derive_seed
from scripts.lib.models.engines import vllm as engine_vllm
from scripts.lib.planning.cluster import ROLLOUT_PYTHON
from tests.conftest import ROOT
from tests.unit.conftest import RUNTIME
from tests.unit.test_sampling import SETTINGS as PLAIN

PYTHON = ROOT / ROLLOUT_PYTHON
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no vllm: make rollout-env")
SETTINGS = PLAIN | {"engine": "vllm", "temperatures": [1.0, 0.7], "check_responses": 6, "max_new_tokens": 24}
# Dies after the first responses, as a step does whose job is killed, but with what it has finished on disk.
DYING = """
from scripts.lib.models.engines import vllm as engine_vllm
from scripts import sample_rollouts
whole = engine_vllm.VllmEngine.generate
def until_killed(engine, requests):
    for found in whole(engine, requests):
        yield found
        raise KeyboardInterrupt
engine_vllm.VllmEngine.generate = until_killed
raise SystemExit(sample_rollouts.main())
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, save_model, tokenizer, prompts):
    """A policy whose heads are as wide as vLLM's kernels want them, and a folder for results.

    Its own file asks for a penalty that neither engine may apply (test_sampling.py says what transformers then draws).
    """
    root = tmp_path_factory.mktemp("vllm")
    save_model(root / "sft" / "policy", tokenizer, hidden_size=64, generation={"repetition_penalty": 3.0})
    (root / "prompts").mkdir()
    (root / "prompts" / "set-1.parquet").write_bytes(prompts.read_bytes())
    return root


def start(world, place, first, number, runtime=None, dying=False, **given):
    """Run the stage by the rollout environment's Python."""
    settings = SETTINGS | {"first": first, "prompts": number} | given
    stage = ["-c", DYING] if dying else ["-m", "scripts.sample_rollouts"]
    return subprocess.run(
        [
            *(str(PYTHON), *stage, "--settings", json.dumps(settings)),
            *("--runtime", json.dumps(RUNTIME | {"checkpoint_minutes": 0} | (runtime or {}))),
            *("--policy", str(world / "sft" / "policy"), "--prompts", str(world / "prompts" / "set-1.parquet")),
            *("--output", str(world / "sft" / "rollouts" / place), "--results", str(world)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def sample(world, place, first, number, runtime=None, dying=False, **given):
    """Run the stage: (log, rows, manifest)."""
    output = world / "sft" / "rollouts" / place
    done = start(world, place, first, number, runtime, dying, **given)
    if dying:
        assert done.returncode != 0 and "KeyboardInterrupt" in done.stderr, done.stderr
        return done.stderr, [], {}
    assert done.returncode == 0, done.stdout + done.stderr
    return (
        done.stderr,
        tables.read_table(output, ROLLOUTS).to_dicts(),
        json.loads(output.with_suffix(".json").read_text()),
    )


@pytest.fixture(scope="module")
def whole(world):
    """All five prompts in one shard."""
    return sample(world, "whole/0.parquet", 0, 5)


@pytest.fixture(scope="module")
def shards(world):
    """The same prompts in shards of two, two of them by one engine, whose first start was killed."""
    killed = sample(world, "shards/0.parquet", 0, 2, {"shards_per_engine": 2}, dying=True)
    kept = len(list((world / "work" / "sft" / "rollouts" / "shards").rglob("*.parquet")))
    first = sample(world, "shards/0.parquet", 0, 2, {"shards_per_engine": 2})
    second = sample(world, "shards/1.parquet", 2, 2, {"shards_per_engine": 2})
    third = sample(world, "shards/2.parquet", 4, 1)
    return killed, kept, first, second, third


def test_the_variables_that_steer_it_are_those_that_it_reads():
    names = {*engine_vllm.ENVIRONMENT, *engine_vllm.CPU_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE", "VLLM_CACHE_ROOT"}
    code = f"import vllm.envs; print(sorted({names!r} - set(vllm.envs.environment_variables)))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_sampler_that_needs_a_compiler_is_off():
    # As on a GPU. Left on, it would be imported, which this environment cannot do where it is made for the processor.
    code = """
import os
from types import SimpleNamespace
from scripts.lib.models.engines import vllm as engine_vllm
os.environ.update(engine_vllm.ENVIRONMENT)
from vllm.v1.sample.ops import topk_topp_sampler as sampler
sampler.current_platform = SimpleNamespace(is_cuda=lambda: True)
print(sampler.flashinfer_sampler_supported())
"""
    done = subprocess.run([str(PYTHON), "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


@pytest.mark.parametrize(
    ("runtime", "said", "hint"),
    [
        ({"vllm_cpu_cache_gib": 1_000_000}, "KVCACHE_SPACE", "runtime.vllm_cpu_cache_gib"),
        ({"vllm_tensor_parallel": 3}, "tensor parallel size (3)", "runtime.vllm_tensor_parallel"),
    ],
)
def test_what_it_refuses_is_said_with_the_settings_that_decide_it(world, runtime, said, hint):
    done = start(world, "refused/0.parquet", 0, 5, runtime)
    assert done.returncode == 2, done.stderr
    assert said in done.stdout
    assert done.stdout.endswith(f"Hint: change {hint}.\n")


def test_the_words_by_which_it_is_known_what_decides_are_still_its_own():
    source = "".join(file.read_text() for file in PYTHON.parents[1].glob("lib/*/site-packages/vllm/[cv]*/**/*.py"))
    words = (*engine_vllm.LENGTH, *engine_vllm.MEMORY, *engine_vllm.PARALLEL)
    assert [each for each in words if each not in source] == []


def test_what_it_caches_is_keyed_by_what_the_lock_is_keyed_by(world, tmp_path):
    # Engines that share a lock share a cache; one for another folder compiles by itself, though it is the same model.
    shutil.copytree(world / "sft" / "policy", tmp_path / "policy")
    code = """
import sys
from scripts.lib.models.compile_cache import NOT_COMPILED
from vllm import EngineArgs
one = {"model": sys.argv[1], "seed": 1, "gpu_memory_utilization": 0.5, "dtype": "float32"}
other = {"model": sys.argv[2], "seed": 2, "gpu_memory_utilization": 0.6, "dtype": "bfloat16"}
keys = {name: EngineArgs(**one | {name: other[name]}).create_engine_config().compute_hash() for name in one}
own = EngineArgs(**one).create_engine_config().compute_hash()
print(sorted(NOT_COMPILED) == sorted(name for name in keys if keys[name] == own))
"""
    command = [str(PYTHON), "-c", code, str(world / "sft" / "policy"), str(tmp_path / "policy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


def drawn(rows):
    return {(row["prompt_id"], row["k"]): (row["token_ids"], row["finish_reason"], row["temperature"]) for row in rows}


def test_each_prompt_and_k_stands_once_with_its_own_seed(whole, prompts):
    _, rows, manifest = whole
    table = tables.read_table(prompts, PROMPTS)["prompt_id"].to_list()
    assert [(row["prompt_id"], row["k"]) for row in rows] == [(prompt, k) for prompt in table for k in range(4)]
    assert [row["seed"] for row in rows] == [derive_seed(1, row["prompt_id"], row["k"]) for row in rows]
    assert [row["temperature"] for row in rows] == [1.0, 1.0, 0.7, 0.7] * 5
    assert manifest["counts"]["responses_out"] == 20
    assert len({tuple(row["token_ids"]) for row in rows}) > 10


def test_stop_tokens_are_kept_and_finish_reasons_fit_them(whole, tokenizer):
    from scripts.lib.models import chat

    stops = chat.stop_ids(tokenizer)
    reasons = {row["finish_reason"] for row in whole[1]}
    assert reasons == {"stop", "length"}
    for row in whole[1]:
        assert (row["token_ids"][-1] in stops) == (row["finish_reason"] == "stop")
        assert row["finish_reason"] == "stop" or len(row["token_ids"]) == 24


def test_the_responses_that_are_checked_have_a_log_probability(whole):
    rows = whole[1]
    assert sorted(row["seed"] for row in rows if row["logprob"] is not None) == sorted(r["seed"] for r in rows)[:6]


def test_shards_and_kills_change_no_response(whole, shards):
    _, kept, *made = shards
    assert kept == 1  # the killed step had written the responses that ended first
    rows = [row for _, part, _ in made for row in part]
    assert [(row["prompt_id"], row["k"]) for row in rows] == [(row["prompt_id"], row["k"]) for row in whole[1]]
    assert drawn(rows) == drawn(whole[1])
    assert "rows were finished before" in made[0][0]


def test_one_engine_works_through_several_shards(shards, world):
    _, _, first, second, third = shards
    assert "goes on with another shard, 4 responses" in first[0]  # the other four had ended before the kill
    # The second shard's own step finds them all and starts no engine; the third was not among the two.
    assert "8 rows were finished before" in second[0]
    assert "LLM engine" in first[0] and "LLM engine" not in second[0]
    assert "LLM engine" in third[0]
    assert not (world / "work").exists()


def test_greedy_decoding_is_that_of_transformers(world, run_stage):
    from scripts import sample_rollouts

    _, ours, _ = sample(world, "greedy/0.parquet", 0, 5, k=1, temperatures=[0.0])
    output = world / "sft" / "rollouts" / "other" / "0.parquet"
    settings = SETTINGS | {"engine": "transformers", "k": 1, "temperatures": [0.0]}
    paths = {"policy": world / "sft" / "policy", "prompts": world / "prompts" / "set-1.parquet"}
    assert run_stage(sample_rollouts, settings, output, **paths)[0] == 0
    assert drawn(ours) == drawn(tables.read_table(output, ROLLOUTS).to_dicts())


def test_the_trainer_sees_the_same_model(whole, world, run_stage):
    rollouts = world / "sft" / "rollouts" / "whole" / "0.parquet"
    output = world / "sft" / "rollouts" / "whole" / "engine.parquet"
    paths = {"policy": world / "sft" / "policy", "rollouts": rollouts}
    code, manifest = run_stage(check_engine, {"dtype": "float32"}, output, **paths)
    assert code == 0
    assert manifest["counts"] == {"responses_in": 20, "responses_compared": 6}
    assert manifest["metrics"]["absolute_gap"] < 1e-5


def test_another_model_behind_the_engine_stops_the_iteration(whole, world, run_stage, save_model, tokenizer, capsys):
    other = save_model(world / "other" / "policy", tokenizer, seed=2, hidden_size=64)
    rollouts = world / "sft" / "rollouts" / "whole" / "0.parquet"
    paths = {"policy": other, "rollouts": rollouts}
    assert run_stage(check_engine, {"dtype": "float32"}, world / "x.parquet", **paths)[0] == 2
    said = capsys.readouterr().out
    assert "gate: engine and trainer differ by" in said and "allowed are 0.001" in said
    assert (
        run_stage(check_engine, {"dtype": "float32"}, world / "y.parquet", {"engine_tolerance": 100}, **paths)[0] == 0
    )
