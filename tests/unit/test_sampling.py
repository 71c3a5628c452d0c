"""The stage sample_rollouts and its engines: exact draws, one seed per response, whole shards, kept finish reasons."""

import dataclasses
import os
import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM

from scripts import sample_rollouts, score_logprobs
from scripts.lib.data import tables
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.data.seeds import derive_seed
from scripts.lib.kinds.sampling import SampleRollouts
from scripts.lib.models import chat, loading
from scripts.lib.models.engines import vllm as engine_vllm
from scripts.lib.models.engines.transformers import PerRowSampling, TransformersEngine, keep_nucleus
from scripts.lib.models.generation import Request
from scripts.lib.stage import work
from scripts.lib.stage.chunks import Chunks
from tests.unit.conftest import stage_runtime, typed

SETTINGS = {
    "engine": "transformers",
    "k": 4,
    "temperatures": [1.0],
    "top_p": 1.0,
    "max_prompt_tokens": 64,
    "max_new_tokens": 8,
    "record_logprobs": False,
    "seed": 1,
    "first": 0,
    "prompts": 5,
    "dtype": "float32",
}
MANY = stage_runtime(generate_batch=64, score_tokens=512)


@pytest.fixture
def sample(tmp_path, run_stage, policy, prompts):
    """Run the stage: (exit code, rows, manifest, output)."""

    def call(runtime=None, name="0", **given):
        output = tmp_path / f"{name}.parquet"
        settings = SETTINGS | given
        code, manifest = run_stage(sample_rollouts, settings, output, runtime, policy=policy, prompts=prompts)
        rows = tables.read_table(output, ROLLOUTS).to_dicts() if code == 0 else []
        return code, rows, manifest, output

    return call


@pytest.fixture(scope="module")
def stops(policy):
    return chat.stop_ids(loading.load_tokenizer(policy), loading.generation_config(policy))


@pytest.fixture(scope="module")
def engine(policy, stops):
    """An engine that generates as many responses at once as it is given."""
    return TransformersEngine(policy, typed(SampleRollouts, SETTINGS), MANY, stops, torch.device("cpu"))


@pytest.fixture(scope="module")
def requests(tokenizer, prompts):
    """Two requests for each of five prompts of different lengths, at temperatures 1 and 0.7."""
    table = tables.read_table(prompts, PROMPTS).to_dicts()
    return [
        Request(chat.prompt_ids(tokenizer, row["messages"]), temperature, 0.9, 8, derive_seed(1, row["prompt_id"], k))
        for row in table
        for k, temperature in enumerate([1.0, 0.7])
    ]


# The engine: a response depends on its own request only.


def drawn(engine, requests):
    found = {}
    for batch in engine.generate(requests):
        assert not found.keys() & batch.keys()
        found |= batch
    return [found[i] for i in range(len(requests))]


def test_a_response_is_the_same_alone_in_a_batch_and_in_any_order(engine, requests):
    together = drawn(engine, requests)
    assert len({tuple(response.token_ids) for response in together}) > 5
    assert [drawn(engine, [request])[0] for request in requests] == together
    assert drawn(engine, requests[::-1]) == together[::-1]
    shuffled = [3, 7, 0, 9, 5, 1]
    assert drawn(engine, [requests[i] for i in shuffled]) == [together[i] for i in shuffled]


def test_another_seed_gives_another_response(engine, requests):
    others = [dataclasses.replace(request, seed=request.seed + 1) for request in requests]
    pairs = zip(drawn(engine, requests), drawn(engine, others))
    assert sum(first != second for first, second in pairs) >= 8


def test_temperature_zero_is_the_argmax_decoding_of_plain_transformers(engine, requests, policy, stops):
    model = AutoModelForCausalLM.from_pretrained(policy)
    greedy = [dataclasses.replace(request, temperature=0, seed=i) for i, request in enumerate(requests[::2])]
    for request, response in zip(greedy, drawn(engine, greedy)):
        ids = torch.tensor([request.prompt_ids])
        with torch.no_grad():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=stops
            )
        assert response.token_ids == whole[0, ids.shape[1] :].tolist()


def test_the_models_own_generation_config_changes_no_draw(requests, stops, tmp_path, tokenizer, save_model):
    found = []
    for name, generation in {"plain": {}, "penalised": {"repetition_penalty": 3.0, "min_new_tokens": 7}}.items():
        folder = save_model(tmp_path / name, tokenizer, generation=generation)
        kept = loading.generation_config(folder)
        assert all(getattr(kept, key) == value for key, value in generation.items())
        engine = TransformersEngine(folder, typed(SampleRollouts, SETTINGS), MANY, stops, torch.device("cpu"))
        found.append(drawn(engine, [*requests, *(dataclasses.replace(each, temperature=0) for each in requests)]))
    assert found[0] == found[1]


def test_greedy_and_sampled_rows_do_not_disturb_each_other_in_a_batch(engine, requests):
    mixed = [dataclasses.replace(request, temperature=0 if i % 2 else 1.0) for i, request in enumerate(requests)]
    assert drawn(engine, mixed) == [drawn(engine, [r])[0] for r in mixed]


def test_a_row_that_has_ended_draws_no_more_and_leaves_the_others_as_they_were():
    rows = [Request([7], 1.0, 1.0, 4, seed) for seed in (1, 2)]
    logits = torch.zeros(2, 9)
    watched, alone = (PerRowSampling(rows[start:], [7], torch.device("cpu")) for start in (0, 1))
    # The prompt ends in a stop token, as the header of a turn may: it ends nothing.
    assert (watched(torch.tensor([[7], [7]]), logits) != 0).all()
    alone(torch.tensor([[7]]), logits[:1])
    noise = watched(torch.tensor([[7, 7], [7, 3]]), logits)
    assert (noise[0] == 0).all()
    assert torch.equal(noise[1:], alone(torch.tensor([[7, 3]]), logits[:1]))


# The draw: exact softmax, exact nucleus.


def draws(logits, count, temperature, top_p=1.0):
    """How often each token is drawn: half over rows with a seed each, half over steps of one row."""
    found = torch.zeros(len(logits))
    half = count // 2
    rows = [Request([0], temperature, top_p, 1, derive_seed("row", i)) for i in range(half)]
    prompts = torch.zeros(half, 1, dtype=torch.long)
    scores = PerRowSampling(rows, [], torch.device("cpu"))(prompts, logits.repeat(half, 1))
    found += torch.bincount(scores.argmax(-1), minlength=len(logits))
    one = PerRowSampling([Request([0], temperature, top_p, 1, 5)], [], torch.device("cpu"))
    for _ in range(count - half):
        found[one(prompts[:1], logits[None]).argmax()] += 1
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_draw_follows_the_softmax_at_the_temperature(temperature):
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    expected = 3000 * (logits / temperature).softmax(-1)
    chi_square = ((draws(logits, 3000, temperature) - expected) ** 2 / expected).sum()
    # 99.9th percentile of χ² with four degrees of freedom.
    assert chi_square < 18.47


def test_the_draw_at_another_temperature_would_be_seen():
    # The bound above has power: draws at 1.0 are far from the softmax at 0.8.
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0])
    expected = 3000 * (logits / 0.8).softmax(-1)
    assert ((draws(logits, 3000, 1.0) - expected) ** 2 / expected).sum() > 18.47


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        # Probabilities 0.05, 0.5, 0.15, 0.3: the smallest set that reaches top_p.
        (1e-6, {1}),
        (0.49, {1}),
        (0.51, {1, 3}),
        (0.79, {1, 3}),
        (0.81, {1, 2, 3}),
        (0.94, {1, 2, 3}),
        (0.96, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p, kept):
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    found = keep_nucleus(logits, torch.tensor([[top_p]]))
    assert {i for i in range(4) if found[0, i] > float("-inf")} == kept
    assert torch.equal(found[0, list(kept)], logits[0, list(kept)])


def test_each_row_has_its_own_nucleus():
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().repeat(3, 1)
    found = keep_nucleus(logits, torch.tensor([[0.4], [1.0], [0.7]]))
    assert (found > float("-inf")).tolist() == [[False, True, False, False], [True] * 4, [False, True, False, True]]


def test_no_draw_leaves_the_nucleus_and_within_it_the_softmax_holds():
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    found = draws(logits, 2000, 1.0, top_p=0.7)
    assert found[0] == found[2] == 0
    expected = 2000 * torch.tensor([0.5, 0.3]) / 0.8
    # 99.9th percentile of χ² with one degree of freedom.
    assert ((found[[1, 3]] - expected) ** 2 / expected).sum() < 10.83


def test_the_nucleus_is_taken_at_the_temperature():
    # At 0.5 the probabilities are 0.685, 0.247, 0.062, 0.007: 0.6 is reached by one token, at 1.0 by two.
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (draws(logits, 400, 0.5, top_p=0.6) > 0).tolist() == [True, False, False, False]
    assert (draws(logits, 400, 1.0, top_p=0.6) > 0).tolist() == [True, True, False, False]


# The stage.


@pytest.mark.parametrize(
    ("samples", "temperatures", "wanted"),
    [
        (8, [1.0, 0.7], [1.0] * 4 + [0.7] * 4),
        (4, [1.0], [1.0] * 4),
        (5, [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]),
        (6, [0.5, 1.0, 1.5], [0.5, 0.5, 1.0, 1.0, 1.5, 1.5]),
    ],
)
def test_k_is_split_into_equal_blocks_of_temperatures(samples, temperatures, wanted):
    assert [sample_rollouts.temperature_of(k, samples, temperatures) for k in range(samples)] == wanted


def test_the_table_says_what_each_response_was_drawn_with(sample, prompts, tokenizer):
    _, rows, _, _ = sample(k=8, temperatures=[1.0, 0.7], max_new_tokens=3)
    asked = tables.read_table(prompts, PROMPTS).to_dicts()
    assert [(row["prompt_id"], row["k"]) for row in rows] == [(p["prompt_id"], k) for p in asked for k in range(8)]
    assert [row["temperature"] for row in rows] == ([1.0] * 4 + [0.7] * 4) * 5
    assert [row["seed"] for row in rows] == [derive_seed(1, row["prompt_id"], row["k"]) for row in rows]
    assert len({row["seed"] for row in rows}) == 40
    assert all(row["messages"] == p["messages"] for row, p in zip(rows[::8], asked))
    assert {row["logprob"] for row in rows} == {None}
    assert all(row["tokens"] == len(row["token_ids"]) for row in rows)


def test_finish_reasons_tell_whole_responses_from_cut_off_ones(sample, stops):
    _, rows, manifest, _ = sample(k=6)
    whole = [row["token_ids"] for row in rows if row["finish_reason"] == "stop"]
    cut = [row["token_ids"] for row in rows if row["finish_reason"] == "length"]
    assert whole and cut and len(whole) + len(cut) == 30
    for ids in whole:
        assert ids[-1] in stops and not set(ids[:-1]) & set(stops)
    for ids in cut:
        assert len(ids) == 8 and not set(ids) & set(stops)
    assert manifest["counts"] == {
        "prompts_in": 5,
        "dropped_long_prompts": 0,
        "responses_out": 30,
        "truncated": len(cut),
        "not_trainable": sum(not row["trainable"] for row in rows),
        "split_otherwise": 0,
    }
    assert manifest["metrics"]["tokens"] == pytest.approx(sum(map(len, whole + cut)) / 30)


def test_shards_with_a_remainder_hold_every_prompt_and_k_once(sample, capsys):
    # Defect 6: five prompts over blocks of two lost the fifth.
    _, whole, _, _ = sample(k=2)
    parts = [sample(k=2, first=first, prompts=count)[1] for first, count in ((0, 2), (2, 2), (4, 1))]
    assert [len(part) for part in parts] == [4, 4, 2]
    # In the same order, and with the same responses: a seed depends on prompt and k only.
    assert [row for part in parts for row in part] == whole
    assert sample(k=2, first=4, prompts=2)[0] == 2
    assert "5 prompts, of which this shard is rows 4 to 6" in capsys.readouterr().out


def test_the_recorded_logprob_is_the_policys_own(sample, tmp_path, run_stage, policy):
    # At temperature 1 whatever the sampling's temperature and nucleus.
    given = {"k": 4, "temperatures": [1.0, 0.5], "top_p": 0.8, "record_logprobs": True}
    _, rows, _, rollouts = sample(**given)
    output = tmp_path / "logprobs.parquet"
    code, _ = run_stage(score_logprobs, {"dtype": "float32"}, output, scorer=policy, rollouts=rollouts)
    scored = tables.read_table(output, LOGPROBS).to_dicts()
    assert code == 0
    assert [(row["prompt_id"], row["k"], row["tokens"]) for row in scored] == [
        (row["prompt_id"], row["k"], row["tokens"]) for row in rows
    ]
    assert [row["logprob"] for row in rows] == pytest.approx([row["logprob"] for row in scored], abs=1e-4)
    assert all(row["logprob"] < 0 for row in rows)
    # Recording changes no draw.
    again = sample(**given | {"record_logprobs": False})[1]
    assert [row["token_ids"] for row in again] == [row["token_ids"] for row in rows]


def test_long_prompts_are_dropped_and_counted(sample, prompts, tokenizer):
    asked = tables.read_table(prompts, PROMPTS).to_dicts()
    lengths = {row["prompt_id"]: len(chat.prompt_ids(tokenizer, row["messages"])) for row in asked}
    longest = max(lengths.values())
    _, rows, manifest, _ = sample(k=2, max_prompt_tokens=longest - 1)
    assert {row["prompt_id"] for row in rows} == {name for name, length in lengths.items() if length < longest}
    assert (manifest["counts"]["prompts_in"], manifest["counts"]["dropped_long_prompts"]) == (5, 1)
    # A prompt of exactly the limit stays.
    assert sample(k=1, max_prompt_tokens=longest)[2]["counts"]["dropped_long_prompts"] == 0


def test_prompts_have_one_bos_and_end_with_the_header_of_the_assistants_turn(sample, tokenizer):
    # Defect 4: the rendered template, BOS included, was tokenised with another BOS before it.
    _, rows, _, _ = sample(k=1)
    header = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"])
    for row in rows:
        assert row["prompt_ids"][0] == tokenizer.bos_token_id
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
        assert row["prompt_ids"][-4:] == header
        assert row["prompt_ids"] == chat.prompt_ids(tokenizer, row["messages"])


def test_the_text_of_a_response_is_its_words(tokenizer, stops):
    # The reward model and the verifier read the text: with its words run together they would read one unknown word.
    question = [{"role": "user", "content": "say yes"}]
    ids = chat.completion_ids(tokenizer, question, "red and blue")
    assert chat.response_text(tokenizer, ids, stops) == "red and blue"
    assert chat.response_text(tokenizer, ids[:-1], stops) == "red and blue"
    assert chat.response_text(tokenizer, [stops[0]], stops) == ""


def test_the_text_of_a_sampled_response_gives_its_token_ids_again(sample, tokenizer):
    _, rows, _, _ = sample(k=8, max_new_tokens=4)
    words = set(tokenizer.get_vocab().values()) - {*tokenizer.all_special_ids, *chat.encode(tokenizer, "\n\n")}
    ids = [row["token_ids"][: -1 if row["finish_reason"] == "stop" else None] for row in rows]
    plain = [(row, own) for row, own in zip(rows, ids) if len(own) > 1 and set(own) <= words]
    assert len(plain) > 10
    for row, own in plain:
        assert chat.encode(tokenizer, row["response"]) == own


def test_the_same_settings_give_the_same_bytes_whatever_the_runtime(sample):
    outputs = [sample(name=name)[3].read_bytes() for name in "ab"]
    outputs.append(sample(name="c", runtime={"generate_batch": 3})[3].read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    assert sample(name="d", seed=2)[3].read_bytes() != outputs[0]


# vLLM's arguments, by a stand-in that records what it is asked; the real one is in test_vllm.py.


class FakeVllm:
    """Modules `vllm`, …: a response is the prompt's last but one id, then `finish`; the last one asked ends first."""

    def __init__(self, finish, swallow=False, on_cpu=True, reason=None, error=None):
        self.finish, self.swallow, self.on_cpu, self.reason = finish, swallow, on_cpu, reason
        self.engine, self.prompts, self.parameters, self.most = None, [], [], 0
        fake, waiting = self, []

        class LLM:
            def __init__(self, **given):
                if error:
                    raise error
                fake.engine, fake.environment = given, dict(os.environ)
                limits = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_seqs=4))
                self.llm_engine = types.SimpleNamespace(add_request=add, step=step, vllm_config=limits)

        def add(name, prompt, parameters):
            waiting.append((name, prompt))
            fake.prompts.append(prompt)
            fake.parameters.append(parameters)
            fake.most = max(fake.most, len(waiting))

        def step():
            name, prompt = waiting.pop()
            return [fake.answer(name, prompt)]

        names = ("vllm", "vllm.inputs", "vllm.sampling_params", "vllm.platforms")
        self.modules = {name: types.ModuleType(name) for name in names}
        platform = types.SimpleNamespace(is_cpu=lambda: self.on_cpu, get_device_name=lambda: "cpu")
        self.modules["vllm.platforms"].current_platform = platform
        self.modules["vllm"].LLM, self.modules["vllm"].__version__ = LLM, "0"
        self.modules["vllm"].SamplingParams = lambda **given: types.SimpleNamespace(**given)
        self.modules["vllm.sampling_params"].RequestOutputKind = types.SimpleNamespace(FINAL_ONLY="final")
        self.modules["vllm.inputs"].TokensPrompt = dict

    def answer(self, name, prompt):
        i = int(name)
        ids = [prompt["prompt_token_ids"][-2], 20 + i, *([self.finish[i % 2]] if self.finish[i % 2] else [])]
        # vLLM may list the most likely token beside the sampled one.
        logprobs = [
            {token: types.SimpleNamespace(logprob=-0.5 - place), 99: types.SimpleNamespace(logprob=-9.0)}
            for place, token in enumerate(ids)
        ]
        read = [7, *prompt["prompt_token_ids"]] if self.swallow else prompt["prompt_token_ids"]
        reason = self.reason or ("stop" if self.finish[i % 2] else "length")
        outputs = [types.SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs, finish_reason=reason)]
        return types.SimpleNamespace(request_id=name, finished=True, prompt_token_ids=read, outputs=outputs)


@pytest.fixture
def fake_vllm(monkeypatch, tmp_path):
    """Put a stand-in in vllm's place: fake_vllm(finish) → it."""

    def install(**given):
        fake = FakeVllm(**given)
        for name, module in fake.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
        return fake

    before = dict(os.environ)
    yield install
    for name in set(os.environ) - set(before):
        del os.environ[name]


def test_vllm_gets_token_ids_and_one_seed_per_request(sample, fake_vllm, stops, policy):
    fake = fake_vllm(finish=[stops[0], None])
    _, rows, manifest, _ = sample(
        engine="vllm", k=2, temperatures=[1.0, 0.7], top_p=0.9, max_new_tokens=9, record_logprobs=True
    )
    assert fake.engine["model"] == str(policy)
    assert (fake.engine["dtype"], fake.engine["max_model_len"]) == ("float32", 64 + 9)
    # The model's own generation_config must not change the sampling behind the settings' back.
    assert fake.engine["generation_config"] == "vllm"
    assert fake.environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert fake.prompts == [{"prompt_token_ids": row["prompt_ids"]} for row in rows]
    assert [p.seed for p in fake.parameters] == [derive_seed(1, row["prompt_id"], row["k"]) for row in rows]
    assert [p.temperature for p in fake.parameters] == [1.0, 0.7] * 5
    assert {(p.top_p, p.max_tokens, tuple(p.stop_token_ids)) for p in fake.parameters} == {(0.9, 9, tuple(stops))}
    # The finish reason is read from the ids: every other response ends with the stop token.
    assert [row["finish_reason"] for row in rows] == ["stop", "length"] * 5
    assert all((row["token_ids"][-1] == stops[0]) == (row["finish_reason"] == "stop") for row in rows)
    # −0.5, −1.5 and −2.5 for the sampled tokens.
    assert [row["logprob"] for row in rows] == pytest.approx([-4.5, -2.0] * 5)
    assert manifest["counts"]["truncated"] == 5


def test_vllm_is_fed_as_it_finds_room(sample, fake_vllm, stops):
    fake = fake_vllm(finish=[stops[0], stops[1]])
    _, rows, _, _ = sample(engine="vllm", k=4)
    assert (len(fake.prompts), fake.most) == (20, 8)  # twice the four that it runs at once
    # Either stop token ends a response.
    assert {row["finish_reason"] for row in rows} == {"stop"}


@pytest.mark.parametrize("checked", [0, 3])
def test_vllm_computes_log_probabilities_of_the_responses_that_are_checked_only(sample, fake_vllm, stops, checked):
    fake = fake_vllm(finish=[stops[1], stops[0]])
    _, rows, _, _ = sample(engine="vllm", k=2, check_responses=checked)
    chosen = sorted(row["seed"] for row in rows)[:checked]
    assert sorted(row["seed"] for row in rows if row["logprob"] is not None) == chosen
    assert sorted(p.seed for p in fake.parameters if p.logprobs == 0) == chosen
    assert {p.logprobs for p in fake.parameters} <= {None, 0}


def test_an_engine_passes_over_shards_that_only_lack_their_table_and_gives_them_back(
    sample, fake_vllm, stops, tmp_path, capsys
):
    # Five prompts in shards of two. The first engine draws the second shard too, but its own table is lost then.
    given = {"engine": "vllm", "k": 2, "prompts": 2, "runtime": {"shards_per_engine": 2}}
    fake_vllm(finish=[stops[0], stops[0]])
    assert sample(**given)[0] == 0
    for path in tmp_path.glob("0.*"):
        path.unlink()
    fake, free = fake_vllm(finish=[stops[0], stops[0]]), []

    class Looking(list):
        def append(self, prompt):
            with work.borrowed(tmp_path / "work" / "1") as held:
                free.append(held)
            super().append(prompt)

    fake.prompts = Looking()
    capsys.readouterr()
    assert sample(**given)[0] == 0
    # Its own four and the two of the third shard, which takes the place that the second one does not need.
    assert len(fake.prompts) == 6
    assert "goes on with another shard, 2 responses" in capsys.readouterr().err
    # The second one's step may come in at any time, also while the engine is at the third.
    assert free == [True] * 6


def test_a_shard_that_is_whole_is_on_disk_though_the_engine_is_killed_over_the_next(tmp_path):
    class Killed:
        def generate(self, requests):
            asked = list(requests)
            assert len(asked) == 4
            yield {0: sample_rollouts.Response([5], "stop", None), 1: sample_rollouts.Response([6], "stop", None)}
            raise KeyboardInterrupt

    def shard(name):
        wanted = [Request([1], 1.0, 1.0, 4, seed) for seed in (1, 2)]
        return sample_rollouts.Shard([], wanted, Chunks(tmp_path / name, minutes=10), 2, 0)

    job = types.SimpleNamespace(facts={})
    with pytest.raises(KeyboardInterrupt):
        sample_rollouts.sample(job, Killed(), shard("own"), iter([shard("borrowed")]))
    assert [row["token_ids"] for row in Chunks(tmp_path / "own", minutes=10).rows.values()] == [[5], [6]]


def test_a_prompt_that_gains_a_token_inside_the_engine_is_refused(sample, fake_vllm, stops, capsys):
    fake_vllm(finish=[stops[0], stops[0]], swallow=True)
    assert sample(engine="vllm", k=2)[0] == 2
    assert "not the prompt that it was given" in capsys.readouterr().out


def test_a_response_that_the_engine_gave_up_is_no_response(sample, fake_vllm, stops, capsys):
    fake_vllm(finish=[stops[0], stops[0]], reason="abort")
    assert sample(engine="vllm", k=2)[0] == 1
    assert "ended a response with 'abort'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("Ninja build failed: nvcc not found"), ValueError("bad config.json")])
def test_what_no_setting_decides_is_shown_as_it_is(sample, fake_vllm, stops, capsys, error):
    fake_vllm(finish=[stops[0], stops[0]], error=error)
    assert sample(engine="vllm", k=2)[0] == 1
    said = capsys.readouterr()
    assert "Traceback" in said.err and str(error) in said.err
    assert "Hint" not in said.err + said.out


def test_memory_that_a_gpu_lacks_is_a_matter_of_the_share_that_vllm_takes():
    for message in (
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "Free memory on device cuda:0 (1.0/79.2 GiB) on startup is less than desired GPU memory utilization (0.9, 71)",
    ):
        assert engine_vllm._deciding(message, on_cpu=False) == ["runtime.vllm_memory"]
    # A cache that is too small for one response: a larger share, or shorter responses.
    message = "To serve at least one request with the model's max seq len (8192) … increasing `gpu_memory_utilization`"
    assert engine_vllm._deciding(message, on_cpu=False) == [
        "max_prompt_tokens or max_new_tokens",
        "runtime.vllm_memory",
    ]


def test_an_engine_for_another_kind_of_machine_is_refused(sample, fake_vllm, stops, capsys):
    fake_vllm(finish=[stops[0], stops[0]], on_cpu=False)
    assert sample(engine="vllm", k=2)[0] == 2
    assert "installed for a GPU, the step is to run on the processor" in capsys.readouterr().out


def test_without_vllm_the_error_says_how_to_get_it(sample, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert sample(engine="vllm", k=2)[0] == 2
    assert "make rollout-env" in capsys.readouterr().out
