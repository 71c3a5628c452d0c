"""A target in phases, each a new invocation of Snakemake: sft, reward, iter1_policy, iter2_policy, …, the target.

    python -m scripts.build_in_phases all --configfile beta.yaml --config run=main

In one invocation all that lies beneath a job that ran runs too. Between two, Snakemake compares bytes: a step that was
made again with the same result sends nothing of the next phases running. Options go to Snakemake as they are.
"""

import re
import subprocess
import sys

ITERATION = re.compile(r"iter([1-9][0-9]*)_(\w+)")


def phases(target: str, known: list[str]) -> list[str]:
    """The targets to build in order, of those that Snakemake knows for the chosen run; `target` comes last.

    Before a target of iteration N only what precedes it is built; `weights` goes through the folders themselves.
    """
    stage = "weights" if target.endswith("weights") else "policy"
    found = sorted(
        (int(match[1]), name) for name in known if (match := ITERATION.fullmatch(name)) and match[2] == stage
    )
    asked = ITERATION.fullmatch(target)
    before = [name for n, name in found if asked is None or n < int(asked[1])]
    order = ["sft", "reward", *before]
    return [*(order[: order.index(target)] if target in order else order), target]


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Snakemake with these arguments; only the list of targets is caught, all else goes to the terminal."""
    listing = subprocess.PIPE if "--list-target-rules" in arguments else None
    return subprocess.run(["snakemake", *arguments], stdout=listing, text=True, check=False)


def main(argv: list[str] | None = None) -> int:
    """Build the target named first, with all further arguments as options for Snakemake; its exit code on a failure."""
    given = sys.argv[1:] if argv is None else argv
    if not given or given[0].startswith("-"):
        print(__doc__)
        print("build_in_phases: no target\nHint: name it first, such as all.", file=sys.stderr)
        return 2
    target, options = given[0], given[1:]
    listed = snakemake("--list-target-rules", *options)
    if listed.returncode:
        return listed.returncode
    names = phases(target, listed.stdout.split())
    for i, name in enumerate(names, 1):
        print(f"# phase {i} of {len(names)}: {name}", flush=True)
        if code := snakemake(*options, "--", name).returncode:
            print(f"build_in_phases: phase {name} failed; later phases did not start", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
