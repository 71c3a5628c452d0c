"""The contract of every stage: one command line in, one artifact and its manifest out.

A stage is a module `scripts/NAME.py` with `run(job)` and `main(argv)`. It sees only its arguments and the files
named there. Settings decide the result; runtime keys decide how fast it comes. The manifest is written last. What an
interrupted step has finished lies in its work folder (work.py). Of several processes the first keeps the lock and
writes the manifest (ranks.py). Once the manifest stands, the step has succeeded: what comes after it is bookkeeping,
which may fail without failing the step, because Snakemake deletes what a failed step has made.
Exit codes: 0 done, 1 a bug, 2 bad config or input.
"""

import argparse
import atexit
import contextlib
import gc
import os
import platform
import resource
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from scripts.lib.stage import artifact, clocks, ranks, work
from scripts.lib.stage.digest import FORMAT, code_digest, plumbing_digest
from scripts.lib.stage.errors import InputError
from scripts.lib.stage.progress import progress as progress
from scripts.lib.stage.progress import say

if TYPE_CHECKING:
    from scripts.lib.kinds.common import Block
    from scripts.lib.kinds.runtime import StageRuntime

# What is written for the settings of several stages takes a job of each.
Settings = TypeVar("Settings", bound="Block", covariant=True)


@dataclass
class Job(Generic[Settings]):
    """What a stage is asked to do, and what it reports back.

    `settings` and `runtime` are the parsed JSON arguments (scripts/lib/kinds).
    `inputs` maps an input's name to its paths in order,
    `output` is the artifact to write, `work` a folder whose content survives a kill, `made_of` what the manifest will
    say of stage, settings, code and inputs. A stage fills `counts` (rows in, out, dropped and why), `metrics`
    (headline numbers), `warnings` (what is wrong with them, in words), `facts` (what may differ between two runs of the
    same work) and `note` (one line for people).
    Training curves go into `curves`, what other trackers write beneath `logs`.
    """

    stage: str
    settings: Settings
    runtime: "StageRuntime"
    inputs: dict[str, list[Path]]
    output: Path
    work: Path
    curves: Path = Path("tensorboard")
    logs: Path = Path("logs")
    made_of: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    warnings: list[str] = field(default_factory=list)

    def input(self, name: str) -> Path:
        """The only path of input `name`."""
        (path,) = self.inputs[name]
        return path


def execute(
    stage: str, run: Callable[[Job[Any]], None], settings: Any, inputs: tuple[str, ...], argv: list[str] | None
) -> int:
    """Parse the command line, run the stage, write its manifest, and return the exit code.

    `settings` is the type of the stage's settings: a block, or a union of blocks told apart by `kind`.
    `inputs` names the stage's inputs; a name ending in `*` takes any number of paths, one in `?` none or one.
    """
    parser = argparse.ArgumentParser(prog=f"python -m scripts.{stage}", description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--settings", required=True, help="JSON: what decides the result")
    parser.add_argument("--runtime", default="{}", help="JSON: what only decides how it is computed")
    parser.add_argument("--code", help="code digest that the plan was made with; a mismatch is refused")
    for name in inputs:
        many = {"*": "*", "?": "?"}.get(name[-1])
        parser.add_argument(f"--{name.rstrip('*?')}", type=Path, nargs=many or 1, default=[], required=many is None)
    parser.add_argument("--output", type=Path, required=True, help="the artifact to write")
    parser.add_argument("--results", type=Path, help="root of all artifacts (default: the output's folder)")
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given)
    inherited = [] if ranks.launched() else ranks.forget(os.environ)
    progress(f"# python -m scripts.{stage} {shlex.join(given)}")
    if inherited:
        progress(f"ignored, because the launcher alone decides on processes: {', '.join(inherited)} of the environment")
    done: list[str] = []
    if argv is None:
        atexit.register(_end_at_once, done)  # the first to come is the last to go: libraries' own handlers run before
    try:
        _execute(stage, run, settings, args, [name.rstrip("*?") for name in inputs])
        done.append(stage)
    except InputError as error:
        _tell(f"{stage}: {error}")
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _tell(text: str) -> None:
    """Print to both streams: the log keeps it, and the person at the terminal sees it without opening the log."""
    for stream in {sys.stderr, sys.stdout}:
        say(text, stream)


def _end_at_once(done: list[str]) -> None:
    """End the process of a stage that is done, without taking the interpreter down first.

    Threads of libraries may still let go of a tensor then (gloo's do, pytorch issue 190489); one that asks for the
    interpreter while that goes down aborts the process, and Snakemake would delete a finished artifact. It also saves
    a second or two of going through millions of objects.
    """
    if done:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk, a closed terminal
                stream.flush()
        os._exit(0)


def _execute(
    stage: str, run: Callable[[Job[Any]], None], kind: Any, args: argparse.Namespace, names: list[str]
) -> None:
    started = time.monotonic()
    # Importing torch allocates millions of objects that stay: collecting among them costs a quarter of the import.
    gc.set_threshold(100_000)
    settings, told = parsed(args.settings, args.runtime, kind)
    code = code_digest(stage, settings.model_dump())
    if args.code is not None and args.code != code:
        raise InputError(
            f"the code changed after the build was planned:\n  planned {args.code}\n  now     {code}\n"
            "Hint: start Snakemake again; it plans with the new code."
        )
    paths = {name.replace("-", "_"): _as_list(getattr(args, name.replace("-", "_"))) for name in names}
    root = args.results or args.output.parent
    tail = artifact.stem(args.output).relative_to(root)
    folder, logs = root / "work" / tail, root / "logs"
    curves = logs / "tensorboard" / tail
    job = Job(stage, settings, told, paths, args.output, folder, curves, logs)
    ranks.join(ranks.on_gpu(job.runtime.device))
    if not ranks.first():
        if not ranks.agree(False):
            run(job)
        ranks.wait()
        ranks.leave()
        return
    with work.locked(folder) as waited:
        artifact.sweep(job.output)
        inputs = {name: [_described(path, root) for path in paths[name]] for name in paths}
        made_here = [path for listed in paths.values() for path in listed if path.is_relative_to(root)]
        with contextlib.suppress(OSError):  # a clock that cannot be looked at stops no work
            if wrong := clocks.warnings(folder, made_here):
                _tell(f"{stage}: warning: {'; '.join(wrong)}\n{clocks.HINT}")
        made_of = {"stage": stage, "settings": settings.model_dump(mode="json"), "code": code, "inputs": inputs}
        job.made_of = made_of
        made = bool(waited) and _already_made(job.output, made_of)
        if not made:
            work.claim(folder, made_of)
            artifact.manifest_path(job.output).unlink(missing_ok=True)
        if ranks.agree(made):  # the others may look into the folder from here on
            job.note = "made by the process that was waited for"
        else:
            run(job)
            results = {"output": artifact.input_digest(job.output), "counts": job.counts, "metrics": job.metrics}
            if job.warnings:  # a manifest without any has no such key, so those of earlier releases stay as they are
                results["warnings"] = job.warnings
            artifact.write_json(artifact.manifest_path(job.output), {"format": FORMAT, **made_of, **results})
            _keep_run_facts(job, started)
        _keep_in_time(folder, made_here)
        ranks.wait()
        ranks.leave()
    for warning in job.warnings:
        progress(f"warning: {warning}")  # Snakemake shows it at the end of the build, from the manifest
    say(f"{stage} {artifact.stem(job.output)}: {job.note} ({time.monotonic() - started:.1f} s)", sys.stdout)


def _already_made(output: Path, made_of: dict[str, Any]) -> bool:
    """Whether the artifact stands there, whole, made of exactly this."""
    try:
        manifest = artifact.read_json(artifact.manifest_path(output))
        same = all(manifest.get(key) == value for key, value in made_of.items())
        return same and artifact.input_digest(output) == manifest.get("output")
    except InputError:
        return False


def _keep_run_facts(job: Job[Any], started: float) -> None:
    """Write what this run took. Without that file the artifact stands all the same."""
    try:
        artifact.write_json(artifact.run_path(job.output), _run_facts(job, started))
    except Exception as error:
        progress(f"{artifact.run_path(job.output)}: not written ({error}); the artifact itself is whole")


def _keep_in_time(folder: Path, inputs: list[Path]) -> None:
    """Bring inputs of the future back, or Snakemake would delete the output."""
    with contextlib.suppress(OSError):  # then Snakemake will say so
        if brought := clocks.bring_back(folder, inputs):
            progress(f"given the present time, or Snakemake would delete the output: {', '.join(map(str, brought))}")


def _run_facts(job: Job[Any], started: float) -> dict[str, Any]:
    """What this run took: seconds, processor and GPU seconds, MiB at the peak, bytes made, and on what hardware."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    torch = sys.modules.get("torch")
    on_gpu = ranks.on_gpu(job.runtime.device)
    seen = torch.cuda.device_count() if torch and on_gpu else 0
    gpus = max(seen, ranks.count()) if seen else 0  # over several nodes, more than this process sees
    seconds = time.monotonic() - started
    facts = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "cpus": len(os.sched_getaffinity(0)),
        "processes": ranks.count(),
        "machine": platform.machine(),
        "gpus": gpus,
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
        "bytes": artifact.size(job.output),
        "runtime": job.runtime.model_dump(mode="json", exclude_unset=True),
        "plumbing": plumbing_digest(),
    }
    if torch and gpus:
        facts |= {
            "gpu": torch.cuda.get_device_name(0),
            "gpu_seconds": round(seconds * gpus, 3),
            "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        }
    return artifact.volatile() | facts | job.facts


def _described(path: Path, root: Path) -> dict[str, str]:
    """An input as a manifest names it: relative to the results, so that they can move; sources outside as given.

    Raises InputError if it is missing, or is not what its own manifest says was made.
    """
    digest = artifact.input_digest(path)
    if not path.is_relative_to(root):
        return {"path": str(path), "sha256": digest}
    manifest = artifact.manifest_path(path)
    if path.suffix == ".parquet" and manifest.exists() and artifact.read_json(manifest).get("output") != digest:
        raise InputError(
            f"{path}: sha256 is {digest}, which is not what {manifest.name} says was made\n"
            "Hint: something changed the table after it was made; delete it and let Snakemake make it again."
        )
    return {"path": path.relative_to(root).as_posix(), "sha256": digest}


def _as_list(value: Any) -> list[Path]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def parsed(settings: str, runtime: str, kind: Any) -> tuple[Any, "StageRuntime"]:
    """The JSON arguments as blocks, `settings` as one of `kind`. Raises InputError with every key that does not fit."""
    from pydantic import TypeAdapter, ValidationError

    from scripts.lib.kinds.runtime import StageRuntime

    blocks = []
    for option, text, wanted in (("--settings", settings, kind), ("--runtime", runtime, StageRuntime)):
        try:
            blocks.append(TypeAdapter(wanted).validate_json(text))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}" for item in error.errors()]
            raise InputError(f"{option}: {'; '.join(wrong)}\nHint: quote it as the log's first line does.") from error
    return blocks[0], blocks[1]


def offline() -> None:
    """Keep the Hugging Face libraries off the network: stages read local files only. Call before importing them."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars do not belong into a log; stages report their own progress
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
