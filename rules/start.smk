"""What a person's own Snakemake says and refuses: before anything is planned, before the first job, and at the end.

A job's own Snakemake reads the rules again and does none of this.
"""

import atexit
import sys
from pathlib import Path

from scripts.lib.planning import failures, given, present, replaced, slurm, submit
from scripts.lib.planning import unused, warned
from scripts.lib.stage import clocks

# Before anything is planned


def introduce():
    """Say what this start is about, and what of the configuration decides nothing or is not pinned."""
    files, said = workflow.config_settings.configfiles, workflow.config_settings.config
    lines = [given.introduction(PLAN.config, files, said)]
    lines += unused.unused(PLAN.config, configuration.own(files, said))
    if unpinned := PLAN.unpinned():
        lines.append(f"not pinned to a commit: {', '.join(unpinned)} (revision: main)")
    print(*lines, sep="\n", file=sys.stderr)


def check_targets():
    """Refuse targets that nothing makes, sources that are not there, and results where a file stands."""
    words = command_line.words()
    planned(environment.blocked(PLAN.root).raise_if_any, "results")
    known = {each.name: each.has_wildcards() for each in workflow.rules}
    known.pop("stage")  # what all steps take over; it makes nothing
    planned(command_line.check_targets, cli, words, PLAN, known)
    planned(present.check, PLAN, planned(command_line.artifacts, cli, words, PLAN))


# With these options Snakemake submits nothing and plans no submission.
SUBMIT_NOTHING = (
    *("touch", "unlock", "lint", "list_rules", "list_target_rules"),
    *("print_compilation", "dag", "rulegraph", "filegraph", "d3dag", "summary"),
    *("detailed_summary", "list_changes", "list_input_changes", "list_untracked"),
    *("list_params_changes", "cleanup_metadata", "archive", "report"),
    *("delete_all_output", "delete_temp_output", "list_conda_envs"),
)


def settled(site, dry):
    """Fill in what the site leaves open by what SLURM says. A dry run goes on where SLURM does not answer."""
    try:
        has = slurm.ask(tries=1 if dry else slurm.TRIES)
        site = cluster.settle(site, has, PLAN.config)
        print(*cluster.in_words(site, has, PLAN.config), sep="\n", file=sys.stderr)
    except errors.ConfigError as error:
        if not dry:
            raise Refused(str(error)) from None
        print(f"not ready to submit: {error}", file=sys.stderr)
    return site


def use_slurm():
    """Settle the site by what SLURM says, tell what is in the queue already, and submit patiently."""
    global SITE
    asked = command_line.with_profiles(cli, command_line.words())
    if asked.executor != "slurm" or any(
        getattr(asked, each) for each in SUBMIT_NOTHING
    ):
        return
    SITE = settled(SITE, asked.dryrun)
    if not asked.dryrun:
        if earlier := " ".join(submit.left_by_others()):
            print(
                "still in the queue from an earlier or another build here: jobs"
                f" {earlier}; steps that still run are waited for."
                f" Hint: `scancel {earlier}` ends them.",
                file=sys.stderr,
            )
        submit.stand_in()


# Before the first job


def unready(artifacts):
    """What is wrong with the interpreters that making these artifacts would start, and what packages they lack."""
    lines = cluster.unready(
        PLAN.config, SITE, PLAN.samples_by("vllm", artifacts), CONDA
    )
    if CONDA or (SITE or {}).get("train_python"):
        return lines  # packages of another environment than this
    return lines + present.missing_packages(PLAN, artifacts)


def ready(artifacts):
    """Refuse a build of these artifacts that the machine is not ready for."""
    lines = unready(artifacts) + environment.unwritable(PLAN.root)
    program = cluster.interpreter(PLAN.config, SITE)
    if artifacts and not CONDA and program == "python":
        lines += environment.complaints(program)
    if lines:
        raise errors.ConfigError(
            "\n".join(["not ready to run:", *(f"  - {line}" for line in lines)])
        )


def bring_back(jobs):
    """Give inputs that a clock ahead of ours has stamped the present time, or the jobs that read them are lost."""
    read = {Path(path) for job in jobs for path in job.input}
    if late := read and clocks.bring_back(Path(PLAN.root), read):
        print(
            f"made in the future by the clock of this machine, and given the present time: {', '.join(map(str, late))}"
            f"\n{clocks.HINT}",
            file=sys.stderr,
        )


def to_be_made():
    """The artifacts that Snakemake has planned to make; a dry run counts its jobs as finished."""
    return [
        job.output[0]
        for job in workflow.dag.needrun_jobs(exclude_finished=False)
        if job.output
    ]


# At the end


def end_of_dry_run():
    """Say what the build would ask for; Snakemake has no hook for a dry run, and knows late that it is one."""
    if workflow.dryrun and workflow.dag:
        replaced.show(PLAN, to_be_made())


def tell_warnings():
    """Print what the jobs that ran warned of; those that are brought up to date by --touch did not run."""
    ran = [] if workflow.touch else workflow.dag.finished_jobs
    artifacts = [job.output[0] for job in ran if job.rule.name in CARDS]
    for line in warned.lines(artifacts):
        print(line, file=sys.stderr)


if workflow.is_main_process:
    introduce()
    check_targets()
    if SITE:
        use_slurm()
    # What is planned may be looked at without any environment; a build is refused before its first job.
    for line in unready(PLAN.artifacts(*PLAN.asked("all"))):
        print(f"not ready for all steps: {line}", file=sys.stderr)
    atexit.register(end_of_dry_run)


onstart:
    if not workflow.touch:
        planned(ready, to_be_made())
        planned(replaced.agree, PLAN, to_be_made())
        bring_back(workflow.dag.needrun_jobs())


onsuccess:
    tell_warnings()


onerror:
    tell_warnings()
    failures.show(
        (
            (job.rule.name, log)
            for job in workflow.scheduler.failed
            for log in job.log
        ),
        steps=CARDS,
    )
