"""What a cluster says of itself, what the site's file makes of it, and an sbatch that is patient."""

import os
import subprocess
import sys
import time

import pytest

from scripts import check_site
from scripts.lib.planning import cluster, slurm, submit
from scripts.lib.planning import config as configuration
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import ConfigError
from tests.unit.test_cluster import asked, configured

NOTHING = dict.fromkeys(cluster.SITE_KEYS)
# As SLURM 22.05 and 23.11 print them, shortened: free text (Reason, OS) holds words of the form KEY=VALUE too.
PARTITIONS = """\
PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES MaxTime=1-12:30:00 RootOnly=NO State=UP \
MaxMemPerNode=UNLIMITED
PartitionName=a100 AllowAccounts=ALL Default=NO MaxTime=UNLIMITED RootOnly=NO State=UP MaxMemPerNode=400000
PartitionName=biology AllowAccounts=bio,lab Default=NO MaxTime=08:00:00 RootOnly=NO State=UP MaxMemPerNode=UNLIMITED
PartitionName=mixed DenyAccounts=ml Default=NO MaxTime=30:00 RootOnly=NO State=UP MaxMemPerNode=UNLIMITED
PartitionName=broken AllowAccounts=ALL Default=NO MaxTime=60 RootOnly=NO State=DOWN MaxMemPerNode=UNLIMITED

"""
NODES = """\
NodeName=c1 CPUEfctv=32 CPUTot=32 Gres=(null) RealMemory=128000 MemSpecLimit=4000 Partitions=main,broken
NodeName=c2 CPUTot=64 Gres=(null) RealMemory=256000 Partitions=main Reason=bad RealMemory=9 [root@2026]
NodeName=g1 CPUTot=96 Gres=gpu:a100:4(S:0,2),nvme:1 OS=Linux 6.1 #1 x=y RealMemory=500000 Partitions=a100,mixed
NodeName=g2 CPUTot=48 Gres=gpu:2080:8,gpu:a100:2 RealMemory=200000 Partitions=mixed,biology
"""
ML = slurm.Accounts(("ml",), "ml")


NO_ACCOUNTS = slurm.Accounts()


def cluster_of(*partitions, accounts=NO_ACCOUNTS):
    return slurm.Cluster({each.name: each for each in partitions}, accounts)


CPU = slurm.Partition("main", default=True, minutes=2190, mem_mb=256000, cpus=64)
GPU = slurm.Partition("a100", minutes=None, mem_mb=400000, cpus=96, gpus={"a100": 4})


def test_partitions_are_those_that_are_up_and_open_to_the_person():
    found = slurm.partitions(PARTITIONS, NODES, ML)
    assert found == {"main": CPU, "a100": GPU}
    # Who charges another account sees other partitions; without accounting, all.
    assert [*slurm.partitions(PARTITIONS, NODES, slurm.Accounts(("lab",)))] == ["main", "a100", "biology", "mixed"]
    everything = slurm.partitions(PARTITIONS, NODES)
    assert [*everything] == ["main", "a100", "biology", "mixed"]
    assert everything["mixed"].gpus == {"2080": 8, "a100": 4}
    assert everything["mixed"].minutes == 30
    assert str(everything["biology"]) == "biology (200000 MiB, 48 cores, 8 2080, 2 a100, 480 min)"


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("", {}),
        ("gpu:8", {"": 8}),
        ("gpu", {"": 1}),
        ("gpu:h100:8(S:0-1)", {"h100": 8}),
        ("craynetwork:4,gpu:1g.10gb:7,gpu:a100:1(S:0,3)", {"1g.10gb": 7, "a100": 1}),
        ("gpu_mem:80,shard:gpu:3", {}),
    ],
)
def test_gpus_of_a_node(gres, gpus):
    assert slurm.gpus_of(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        *(("UNLIMITED", None), ("infinite", None), ("NONE", None), ("30", 30), ("90:30", 90), ("08:00:00", 480)),
        *(("2-00:00:00", 2880), ("1-12:30:00", 2190), ("3-12", 5040), ("1-00:30", 1470), ("10-1:5:0", 14465)),
    ],
)
def test_time_limits_in_minutes(limit, minutes):
    assert slurm.minutes(limit) == minutes


def test_what_the_site_leaves_open_comes_from_the_cluster():
    has, config = cluster_of(CPU, GPU, accounts=ML), configured(train_sft={"mem_mb": 300000, "runtime": 3000})
    site = cluster.settle(NOTHING, has, config)
    assert asked(config, "train_sft", site) == {
        "mem_mb": 300000, "runtime": 3000, "cpus_per_task": 8, "slurm_partition": "a100", "gres": "gpu:1",
        "tasks_per_gpu": 0,
    }  # fmt: skip
    # The second attempt is cut down to the largest node of its own partition; another step to that of its own.
    assert asked(config, "train_sft", site, 2)["mem_mb"] == 400000
    config = configured("cpu", train_sft={"mem_mb": 300000, "runtime": 3000})
    site = cluster.settle(NOTHING, has, config)
    assert asked(config, "train_sft", site)["slurm_partition"] == "main"
    assert asked(config, "train_sft", site)["mem_mb"] == 256000
    assert asked(config, "train_sft", site, 2)["runtime"] == 2190
    assert cluster.in_words(site, has, config) == [
        "SLURM: steps without a GPU in main (256000 MiB, 64 cores, 2190 min); account: none named (ml) "
        "(profiles/slurm/site.yaml overrides)",
        "SLURM: train_sft asks for mem_mb = 256000, the limit there, and not for 300000",
        "SLURM: train_sft asks for runtime = 2190, the limit there, and not for 3000",
    ]


def test_what_the_site_names_counts():
    has = cluster_of(CPU, GPU, accounts=slurm.Accounts(("ml", "lab")))
    named = {"account": "lab", "cpu_partition": "a100", "max_mem_mb": 9000, "gpu_model": "a100"}
    site = cluster.settle({**NOTHING, **named}, has, configured())
    job = asked(configured(), "train_sft", site, 2)
    assert (job["slurm_account"], job["mem_mb"], job["gres"]) == ("lab", 9000, "gpu:a100:1")
    assert asked(configured(), "curate_data", site)["slurm_partition"] == "a100"


def test_the_default_partition_is_taken_for_gpus_too_if_it_has_some():
    both = slurm.Partition("both", default=True, cpus=8, gpus={"": 2})
    site = cluster.settle(NOTHING, cluster_of(GPU, both), configured())
    assert (site["cpu_partition"], site["gpu_partition"]) == ("both", "both")
    alone = slurm.Partition("alone", cpus=8)
    assert cluster.settle(NOTHING, cluster_of(alone), configured("cpu"))["cpu_partition"] == "alone"


OTHER_GPU = slurm.Partition("v100", minutes=60, mem_mb=1000, cpus=8, gpus={"v100": 8})
MIXED = slurm.Partition("mixed", default=True, cpus=8, gpus={"a100": 2, "v100": 8})


@pytest.mark.parametrize(
    ("has", "named", "said"),
    [
        (cluster_of(CPU, GPU, OTHER_GPU), {}, ["gpu_partition: which one is not clear", "a100 (", "v100 ("]),
        (cluster_of(CPU), {}, ["gpu_partition: which one is not clear; with GPUs there are: none"]),
        (cluster_of(GPU, OTHER_GPU), {}, ["cpu_partition: the cluster has no default partition; it has a100", "v100"]),
        (cluster_of(), {}, ["cpu_partition: the cluster has no default partition; it has none"]),
        (cluster_of(MIXED), {}, ["gpu_model: mixed has GPUs of several types: a100, v100", "`any` takes what comes"]),
        (cluster_of(MIXED), {"gpu_model": "a10"}, ["gpu_model = 'a10': mixed has no such GPU. Hint: did you mean a10"]),
        (cluster_of(CPU, GPU), {"cpu_partition": "mian"}, ["cpu_partition = 'mian': you", "did you mean main?"]),
        (cluster_of(CPU, GPU), {"gpu_partition": "gpu"}, ["gpu_partition = 'gpu': you have no such partition"]),
        (
            cluster_of(CPU, GPU),
            {"gpu_partition": "main"},
            ["gpu_partition = 'main': has no GPUs that", "Hint: there are: a100 ("],
        ),
        (
            cluster_of(CPU, GPU, accounts=slurm.Accounts(("bio", "ml"))),
            {},
            ["account: SLURM has no default among your accounts: bio, ml"],
        ),
        (
            cluster_of(CPU, GPU, accounts=ML),
            {"account": "mll"},
            ["account = 'mll': is no account of yours", "mean ml?"],
        ),
    ],
)
def test_what_is_not_clear_is_refused_with_the_choices(has, named, said):
    with pytest.raises(ConfigError) as raised:
        cluster.settle({**NOTHING, **named}, has, configured())
    for words in said:
        assert words in str(raised.value)
    assert "Hint: " in str(raised.value)


def test_any_gpu_is_taken_by_name_only():
    site = cluster.settle({**NOTHING, "gpu_model": "any"}, cluster_of(MIXED), configured())
    assert asked(configured(), "train_sft", site)["gres"] == "gpu:1"


def test_every_ambiguity_is_told_at_once():
    has = cluster_of(GPU, OTHER_GPU, accounts=slurm.Accounts(("a", "b")))
    with pytest.raises(ConfigError) as raised:
        cluster.settle(NOTHING, has, configured())
    assert [line.split(":")[0] for line in str(raised.value).splitlines()[1:]] == [
        *("  - account", "  - cpu_partition", "  - gpu_partition")
    ]


def test_a_step_that_no_node_can_hold_is_refused_before_anything_is_queued():
    has = cluster_of(CPU, GPU)
    config = configured(train_dpo={"gpus": 8, "threads": 64}, curate_data={"threads": 65})
    with pytest.raises(ConfigError) as raised:
        cluster.settle(NOTHING, has, config)
    assert "resources.train_dpo.gpus = 8: no node of a100 has more than 4. Hint: lower it" in str(raised.value)
    assert "resources.curate_data.threads = 65: no node of main has more than 64 cores" in str(raised.value)
    with pytest.raises(ConfigError, match=r"resources.train_dpo.gpus = 4: no node of mixed has more than 2"):
        cluster.settle(
            {**NOTHING, "gpu_model": "a100"}, cluster_of(MIXED), configured(train_dpo={"gpus": 4, "threads": 8})
        )


# SLURM's commands, played by shell scripts.


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name=script) puts commands on a PATH that has nothing else but what scripts need."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(submit, "FIRST_PAUSE", 0)

    def write(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder

    write(sacctmgr="exit 1")
    return write


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_slurm_there_is_one_clear_error(no_slurm):
    with pytest.raises(ConfigError, match=r"SLURM is not on this machine: no `scontrol` on PATH\nHint: "):
        slurm.ask()


def test_a_busy_controller_is_asked_again(programs, tmp_path):
    answers = f'case "$*" in *partition*) cat {tmp_path}/partitions;; *) cat {tmp_path}/nodes;; esac'
    (tmp_path / "partitions").write_text(PARTITIONS)
    (tmp_path / "nodes").write_text(NODES)
    once = f"mkdir {tmp_path}/busy 2>/dev/null && {{ echo Socket timed out >&2; exit 1; }}"
    programs(scontrol=f"{once}\n{answers}", sacctmgr='case "$*" in *associations*) echo ml;; *) echo ml;; esac')
    assert slurm.ask() == cluster_of(CPU, GPU, accounts=ML)
    # Accounting that does not answer leaves the account to SLURM.
    programs(sacctmgr="exit 1")
    assert slurm.ask().accounts == slurm.Accounts()


def test_a_controller_that_is_down_is_told_in_its_own_words(programs, monkeypatch):
    programs(scontrol="echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(ConfigError) as raised:
        slurm.ask()
    said = "`scontrol --oneliner show partition`: slurm_load_partitions: Unable to contact slurm controller"
    assert str(raised.value).startswith(said)
    assert "(connect failure)\nHint: is this a login node of the cluster?" in str(raised.value)
    programs(scontrol="exec sleep 60")
    monkeypatch.setattr(slurm, "SECONDS_TO_ANSWER", 0.1)
    with pytest.raises(ConfigError, match=r"no answer within 0.1 s"):
        slurm.ask()


# sbatch

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
WORDS = ["--parsable", "--job-name", "uuid", "--comment", "rule_train_sft_wildcards_tiny", "--wrap", "x 'y' $z"]


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def calls(tmp_path, name):
    log = tmp_path / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


def test_a_submission_that_fails_for_a_while_is_tried_again(programs, shared, tmp_path, capfd):
    failing = f"echo sbatch >> {tmp_path}/sbatch.log; [ $(wc -l < {tmp_path}/sbatch.log) -gt 2 ] || "
    failing += f"{{ echo '{TIMED_OUT}' >&2; exit 1; }}"
    programs(
        sbatch=f'{failing}\nfor word; do echo "$word"; done > {tmp_path}/words; echo "17;cluster"', squeue="exit 0"
    )
    assert submit.main([str(shared), *WORDS]) == 0
    assert capfd.readouterr().out == "17;cluster\n"
    assert len(calls(tmp_path, "sbatch")) == 3
    assert (tmp_path / "words").read_text().splitlines() == WORDS
    assert (shared / "submitted").read_text() == "17\n"


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: invalid partition specified: nowhere",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "sbatch: error: Memory specification can not be satisfied",
        "sbatch: error: Batch job submission failed: Access/permission denied",
        "sbatch: unrecognized option '--nonsense'",
    ],
)
def test_a_submission_that_waiting_does_not_mend_fails_at_once(programs, shared, tmp_path, capfd, error):
    programs(sbatch=f'echo sbatch >> {tmp_path}/sbatch.log; echo "{error}" >&2; exit 3', squeue="exit 0")
    assert submit.main([str(shared), *WORDS]) == 3
    assert calls(tmp_path, "sbatch") == ["sbatch"]
    assert capfd.readouterr().err == f"{error}\n"
    assert not (shared / "submitted").exists()


@pytest.mark.parametrize(
    "error",
    [
        TIMED_OUT,
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: slurm_persist_conn_open_without_init: failed to open: Connection refused",
        "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
    ],
)
def test_a_controller_that_stays_busy_is_given_up(programs, shared, tmp_path, monkeypatch, error):
    monkeypatch.setattr(submit, "PATIENCE", 0.1)
    programs(sbatch=f'echo sbatch >> {tmp_path}/sbatch.log; echo "{error}" >&2; exit 1', squeue="exit 0")
    assert submit.main([str(shared), *WORDS]) == 1
    assert len(calls(tmp_path, "sbatch")) > 1


def test_a_submission_whose_answer_was_lost_is_not_submitted_twice(programs, shared, tmp_path, capfd):
    # An earlier attempt of the same step, and another step, are in the queue as well.
    (shared / "submitted").write_text("15\n")
    listed = "echo '15 uuid rule_train_sft_wildcards_tiny'; echo '16 uuid rule_train_sft_wildcards_tiny2'; "
    listed += "echo '17 uuid rule_train_sft_wildcards_tiny'; echo '18 other rule_train_sft_wildcards_tiny'"
    programs(sbatch=f"echo sbatch >> {tmp_path}/sbatch.log; echo '{TIMED_OUT}' >&2; exit 1", squeue=listed)
    assert submit.main([str(shared), *WORDS]) == 0
    assert calls(tmp_path, "sbatch") == ["sbatch"]
    assert capfd.readouterr().out == "17\n"
    assert (shared / "submitted").read_text() == "15\n17\n"


def test_nothing_is_submitted_again_until_the_queue_answers(programs, shared, tmp_path):
    counted = f"echo squeue >> {tmp_path}/squeue.log; [ $(wc -l < {tmp_path}/squeue.log) -gt 2 ] || exit 1"
    busy = (
        f"echo sbatch >> {tmp_path}/sbatch.log; [ -e {tmp_path}/squeue.log ] || {{ echo '{TIMED_OUT}' >&2; exit 1; }}"
    )
    programs(sbatch=f"{busy}\n[ $(wc -l < {tmp_path}/squeue.log) = 3 ] || exit 9; echo 17", squeue=counted)
    assert submit.main([str(shared), *WORDS]) == 0
    assert len(calls(tmp_path, "sbatch")) == 2


def test_a_script_given_on_stdin_reaches_every_attempt(programs, shared, tmp_path, monkeypatch):
    (tmp_path / "script").write_bytes(b"#!/bin/sh\nexit 0\n")
    programs(
        sbatch=f"cat >> {tmp_path}/got; mkdir {tmp_path}/tried || {{ echo 17; exit; }}; echo '{TIMED_OUT}' >&2; exit 1",
        squeue="exit 0",
    )
    with (tmp_path / "script").open() as script:
        monkeypatch.setattr(sys, "stdin", script)
        assert submit.main([str(shared), *WORDS[:-2], "/dev/stdin"]) == 0
    assert (tmp_path / "got").read_bytes() == b"#!/bin/sh\nexit 0\n" * 2


@pytest.fixture
def stand_in(programs, tmp_path, monkeypatch):
    """The patient sbatch first on PATH of this process, as in a build."""
    registered = []
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(submit.atexit, "register", lambda *call: registered.append(call))
    submit.stand_in()
    (folder,) = (tmp_path / "work" / ".snakemake").glob("sbatch.*")
    assert os.environ["PATH"].split(":")[0] == str(folder)
    assert registered == [(submit._leave, folder)]
    return folder


def test_what_is_first_on_path_submits_and_speaks_to_the_person(stand_in, programs, tmp_path, capfd):
    programs(
        sbatch=f'mkdir {tmp_path}/tried || {{ echo "17 $PATH" > {tmp_path}/path; echo 17; exit; }}; '
        "echo 'sbatch: error: Invalid thing' >&2; exit 1",
        squeue="exit 0",
    )
    command = "sbatch --parsable --job-name uuid --comment rule_x_wildcards_y --wrap='a \"b\"'"
    first = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (first.returncode, first.stderr) == (1, "sbatch: error: Invalid thing\n")
    second = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (second.returncode, second.stdout) == (0, "17\n"), second.stderr
    # SLURM's own sbatch, and so the job, never sees the folder.
    assert str(stand_in) not in (tmp_path / "path").read_text()
    submit._say(stand_in, "sbatch: is tried again")
    deadline = time.monotonic() + 10
    while "is tried again" not in (said := capfd.readouterr().err) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said == "sbatch: is tried again\n"


def test_what_a_build_leaves_behind_is_cancelled_or_told(programs, shared, tmp_path, capsys):
    queue = "echo '7 RUNNING'; echo '9 PENDING'; echo '8 COMPLETING'; echo '10 RUNNING'"
    programs(squeue=queue, scancel=f"echo $* >> {tmp_path}/scancel.log")

    def left(*numbers):
        shared.mkdir(exist_ok=True)
        (shared / "submitted").write_text("".join(f"{number}\n" for number in numbers))
        submit._leave(shared)
        assert not shared.exists()
        return capsys.readouterr().err

    assert left(6, 8, 9, 10) == "cancelled what this build left in the queue: jobs 9 10\n"
    assert calls(tmp_path, "scancel") == ["9 10"]
    assert left(6, 8) == ""  # all over
    assert calls(tmp_path, "scancel") == ["9 10"]
    programs(scancel="echo no controller >&2; exit 1")
    assert "SLURM does not answer (no controller); these jobs may still run: 9\nHint: `scancel 9` ends" in left(6, 9)
    programs(squeue="exit 1")
    assert "these jobs may still run: 6 9\n" in left(6, 9)


def test_jobs_of_an_earlier_build_in_this_folder_are_found(programs, tmp_path, monkeypatch):
    here = tmp_path / "my results"
    here.mkdir()
    monkeypatch.chdir(here)
    lines = [
        f"12 u rule_a_wildcards_b {here}",
        f"9 u rule_a {here}",
        "13 u rule_a /elsewhere",
        f"14 x (null) {here}",
        "15",
    ]
    programs(squeue="\n".join(f"echo '{line}'" for line in lines))
    assert submit.left_by_others() == ["9", "12"]
    programs(squeue="exit 1")
    assert submit.left_by_others() == []


# python -m scripts.check_site


@pytest.fixture
def small_cluster(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(check_site, "SECONDS_BETWEEN", 0)
    (tmp_path / "partitions").write_text(PARTITIONS)
    (tmp_path / "nodes").write_text(NODES)
    (tmp_path / "site.yaml").write_text("gpu_partition: a100\n")
    monkeypatch.chdir(tmp_path)
    answers = f'case "$*" in *partition*) cat {tmp_path}/partitions;; *node*) cat {tmp_path}/nodes;; '

    def states(sbatch, job):
        programs(
            scontrol=f"{answers} *) {job};; esac", sbatch=f"echo $* >> {tmp_path}/sbatch.log; {sbatch}", scancel=":"
        )
        said = ["--site", "site.yaml", "--config", '{"runtime": {"device": "auto"}}', "--seconds", "1"]
        return check_site.main([*said, "--configfile", str(ROOT / "config" / "config.yaml")])

    return states


def test_a_site_is_checked_by_a_job_in_each_partition(small_cluster, tmp_path, capsys):
    assert small_cluster("echo 17", "echo 'JobId=17 JobState=COMPLETED NodeList=c1'") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["partitions:", "  main (256000 MiB, 64 cores, 2190 min)"]
    assert said[-2:] == ["main: job 17 ran on c1", "a100: job 17 ran on c1"]
    first, second = calls(tmp_path, "sbatch")
    assert "--partition main" in first and "--gres" not in first
    assert "--partition a100 --gres gpu:1" in second


def test_a_site_that_does_not_work_is_told_by_what_slurm_says(small_cluster, capsys):
    assert small_cluster("echo 'sbatch: error: invalid account' >&2; exit 1", "exit 1") == 2
    assert "main: not accepted: sbatch: error: invalid account\n" in capsys.readouterr().out
    assert small_cluster("echo 17", "echo 'JobId=17 JobState=FAILED NodeList=c1 ExitCode=1:0'") == 2
    assert "a100: job 17 FAILED on c1: no log\n" in capsys.readouterr().out
    assert small_cluster("echo 17", "echo 'JobId=17 JobState=PENDING Reason=Resources NodeList='") == 2
    assert "main: job 17 is PENDING after 1 s (Resources) and was cancelled\n" in capsys.readouterr().out


def test_a_site_is_not_checked_without_slurm(no_slurm, capsys):
    assert check_site.main([]) == 2
    assert capsys.readouterr().err.startswith("SLURM is not on this machine")


# check_site


@pytest.mark.parametrize("said", ["run=main", "{run: main}", "", "3", "[]"])
def test_a_config_that_is_no_json_object_is_told_and_nothing_is_asked(capsys, said):
    assert check_site.main(["--config", said]) == 2
    assert f"--config {said}: must be a JSON object\nHint: " in capsys.readouterr().err


def test_an_sbatch_that_does_not_answer_is_told(programs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_site, "SECONDS_TO_ANSWER", 0.1)
    programs(sbatch="exec sleep 60")
    site = {"account": None, "train_python": None}
    assert check_site.submit(site, configuration.load(), "cpu", 0).startswith("sbatch did not answer within 0.1 s")
