"""What a person typed: the options that name the configuration, and the targets.

Snakemake reads the configuration before the Snakefile can say a word, and answers mistakes there with a traceback or
not at all. So profiles/default calls `stop_early` before it does. Planning does not import Snakemake: `cli` is its
module snakemake.cli, `argv` what stands after the program's name.
"""

import difflib
import io
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.planning import given, paths
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints, ConfigError

# Of an option given twice Snakemake takes the last.
ONCE = {"--configfile": "configfile", "--configfiles": "configfile", "--config": "config", "-C": "config"}
WITHOUT_JOBS = ("list_rules", "list_target_rules", "lint", "print_compilation", "unlock", "cleanup_metadata")
KEY = re.compile(r"[a-zA-Z_][\w-]*\w")  # what Snakemake takes as a key of --config
# Options that name rules; some also take files, and of some Snakemake drops a name that is unknown.
NAMING_RULES = ("forcerun", "until", "omit_from", "allowed_rules", "set_threads", "set_resources")
TARGET = re.compile(r"(iter\d+_)?[a-z_]+")
NUMBERED = re.compile(r"iter([0-9]+)_([a-z]+)")


def stop_early(cli: Any) -> None:
    """End a Snakemake that a person started if its command line cannot be taken as it is; say why on stderr."""
    try:
        check(cli, words())
    except ConfigError as error:
        sys.exit(str(error))


def words() -> list[str]:
    """What stands after `snakemake` on the command line; nothing in a tool of ours that only asks Snakemake."""
    program = Path(sys.argv[0])
    own = program.name == "snakemake" or program.parts[-2:] == ("snakemake", "__main__.py")
    return sys.argv[1:] if own else []


def check(cli: Any, argv: list[str], files: Iterable[Path] = ()) -> None:
    """Raise ConfigError for options that Snakemake would drop, misread, or answer with a traceback.

    `files` are the configuration files that Snakemake takes: a profile may name them in place of the command line.
    """
    options, wrong = cli.get_argument_parser().parse_args(argv), Complaints()
    _given_twice(argv, wrong)
    _dropped_from_profiles(cli, options, wrong)
    said = _said(options.config or [], wrong)
    there = []
    for path in options.configfile or files:
        if not path.exists() and TARGET.fullmatch(str(path)) and path.name not in given.presets():
            text = "no such file; --configfile takes every word up to the next option"
            wrong.add(f"--configfile {path}", None, text, f"if it is a target, put it first: snakemake {path} …")
        else:
            there.append(path)
    given.check(there, said, wrong)
    wrong.raise_if_any("command line")


def _given_twice(argv: list[str], wrong: Complaints) -> None:
    options = argv[: argv.index("--")] if "--" in argv else argv
    words = [ONCE[word.split("=")[0]] for word in options if word.split("=")[0] in ONCE]
    for option, hint in (("configfile", "--configfile a.yaml b.yaml"), ("config", "--config run=main seed=3")):
        if (count := words.count(option)) > 1:
            text = f"given {count} times, and only the last would count"
            wrong.add(f"--{option}", None, text, f"name all after one: {hint}.")


def _dropped_from_profiles(cli: Any, options: Any, wrong: Complaints) -> None:
    """A profile may name configuration files too; those of the command line replace them."""
    for name in [*(options.profile or []), options.workflow_profile or "profiles/default"]:
        found = cli.get_profile_dir(str(name))
        try:
            profile = yaml.safe_load(found[1].read_text(encoding="utf-8")) if found else None
        except (OSError, ValueError, yaml.YAMLError):
            profile = None  # Snakemake says what is wrong with it
        for option in ("configfile", "config"):
            if isinstance(profile, dict) and getattr(options, option) and (other := profile.get(option)):
                text = f"the profile {name} sets {option}: {other!r}, which would not count"
                wrong.add(f"--{option}", None, text, "say it in one place, here or there.")


def _said(entries: list[str], wrong: Complaints) -> dict[str, str]:
    """The keys of --config with their values as text."""
    said: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            hint = f"if it is a target, put it first: snakemake {key} … --config run=main"
            wrong.add(f"--config {entry}", None, "must be KEY=VALUE", hint)
        elif "." in key:
            block = "".join(f"{part}: {{" for part in key.split(".")[:-1])
            text = f"{block}{key.rsplit('.', 1)[1]}: {value}{'}' * key.count('.')}"
            wrong.add(f"--config {entry}", None, "takes keys of the top only", f"put `{text}` into an overlay.")
        elif not KEY.fullmatch(key):
            wrong.add(f"--config {entry}", None, f"{key!r} is no key", "write KEY=VALUE, such as run=main.")
        elif key in said:
            wrong.add(f"--config {entry}", None, f"{key} is given twice, and only the last would count", "say it once.")
        elif key == "preset":
            known = given.presets()
            near = [value] if value in known else difflib.get_close_matches(value, known, n=1)
            name = f"--configfile {given.shown(known[near[0]])}" if near else "--configfile PATH"
            hint = f"{name} takes a preset; results=FOLDER puts its results elsewhere."
            wrong.add(f"--config {entry}", None, "a preset is a file, not a key", hint)
        else:
            said[key] = value
    return said


def with_profiles(cli: Any, argv: list[str]) -> Any:
    """Snakemake's options, those of its profiles among them.

    It tells a workflow what runs its jobs, and whether any run, only after the rules.
    """
    with redirect_stderr(io.StringIO()):  # it announces the profiles again
        return cli.parse_args(argv)[1]


def artifacts(cli: Any, argv: list[str], plan: Plan) -> list[str]:
    """What Snakemake is to build: the artifacts beneath its targets; none where it only lists or tidies up."""
    options = cli.get_argument_parser().parse_args(argv)
    if any(getattr(options, name) for name in WITHOUT_JOBS):
        return []
    asked: list[str] = []
    for target in options.targets or ["all"]:
        with suppress(ConfigError):  # audit, verify and prune make nothing
            asked += plan.asked(target)
    return plan.artifacts(*asked)


def check_targets(cli: Any, argv: list[str], plan: Plan, rules: Mapping[str, bool]) -> None:
    """Raise ConfigError for targets, and for rules or files that options name, which are not known, with the nearest.

    `rules` are the names of all rules, and whether a rule's paths have wildcards.
    """
    options, wrong = cli.get_argument_parser().parse_args(argv), Complaints()
    if with_profiles(cli, argv).no_hooks:
        text = "nobody would be asked before trained weights are replaced"
        wrong.add("--no-hooks", None, text, "leave it out; --config replace=true agrees beforehand.")
    for target in options.targets:
        if rules.get(target):
            hint = "name the file to make, or a target such as iter1_policy; snakemake --list-rules names them."
            wrong.add(f"target {target}", None, "is a step that makes many files", hint)
        elif target in rules and NUMBERED.fullmatch(target):
            try:
                plan.asked(target)
            except ConfigError as error:
                wrong.append(f"target {target}: {error}")
        elif target not in rules:
            _unknown("target", target, plan, [name for name, wild in rules.items() if not wild], wrong)
    for option in NAMING_RULES:
        for name in getattr(options, option) or ():
            if name not in rules:
                _unknown(f"--{option.replace('_', '-')}", name, plan, rules, wrong)
    wrong.raise_if_any("command line")


def _unknown(of: str, name: str, plan: Plan, known: Iterable[str], wrong: Complaints) -> None:
    if "/" in name or "." in name:
        _file(of, name, plan, wrong)
    elif match := NUMBERED.fullmatch(name):
        _iteration(of, name, int(match[1]), plan, known, wrong)
    else:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "such as iter1_policy; snakemake --list-rules names all."
        wrong.add(f"{of} {name}", None, "there is none of this name", hint)


def _iteration(of: str, name: str, n: int, plan: Plan, known: Iterable[str], wrong: Complaints) -> None:
    run, last = plan.config.run, plan.iterations
    inside = re.sub("[0-9]+", str(min(max(n, 1), last)), name, count=1)
    if not 1 <= n <= last:
        text = f"run {run!r} has iterations 1 to {last}; there is no iteration {n}"
        hint = f"raise runs.{run}.iterations." if n else "what iteration 1 starts from is the target sft."
    else:
        near = difflib.get_close_matches(inside, known, n=1)
        text, hint = "there is none of this name", f"did you mean {near[0]}?" if near else f"such as iter{n}_policy."
    wrong.add(f"{of} {name}", None, text, hint)


def _file(of: str, name: str, plan: Plan, wrong: Complaints) -> None:
    path = paths.as_asked(name)
    text, hint, made = "no step makes this file", "", plan.artifact(path)
    try:
        plan.artifacts(made)
        plan.settings(*plan.maker(made))
        if path in files_of(made):
            return
    except KeyError as error:
        text = f"the configuration has no {error.args[0]!r}"
    except ConfigError as error:
        text, _, hint = str(error).removeprefix(f"{made}: ").partition(". Hint: ")
    known = [file for each in plan.artifacts(*plan.asked("all")) for file in files_of(each)]
    if Path(name).suffix in (".yaml", ".yml"):
        hint = f"a configuration file comes after --configfile: snakemake all --configfile {name}"
    elif near := _same(path, known) or difflib.get_close_matches(path, known, n=1):
        hint = f"did you mean {near[0]}?"
    wrong.add(f"{of} {name}", None, text, hint or "snakemake --list-rules names targets.")


def _same(path: str, known: Iterable[str]) -> list[str]:
    """The known path that leads to the same file, such as the relative one of an absolute path."""
    wanted = Path(path).absolute()
    return [file for file in known if Path(file).absolute() == wanted]


def files_of(artifact: str) -> list[str]:
    """The files of an artifact that can be asked for: itself, its manifest, and a folder's digests."""
    return [artifact, paths.manifest(artifact), *([f"{artifact}.sha256"] if paths.is_folder(artifact) else [])]
