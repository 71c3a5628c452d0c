"""Builds a target in phases, each its own Snakemake invocation: sft, reward, iter1_policy, iter2_policy, …, the target.

    python -m scripts.build_in_phases all --configfile beta.yaml --config run=main

Within one invocation, everything downstream of a job that runs is run too. Between invocations Snakemake compares
contents: if a step is rebuilt with the same result, the next phases rerun nothing because of it. Options are passed to
Snakemake unchanged.
"""

import re
import subprocess
import sys

ITERATION = re.compile(r"iter([1-9][0-9]*)_(\w+)")


def phases(target: str, known: list[str]) -> list[str]:
    """The targets to build, in order, out of those that Snakemake knows for the chosen run; `target` comes last.

    Before a target of iteration N only what precedes it is built; a `weights` target goes through the iterations'
    `weights` targets instead of their policies.
    """
    stage = "weights" if target.endswith("weights") else "policy"
    iterations = sorted(
        (int(match[1]), name) for name in known if (match := ITERATION.fullmatch(name)) and match[2] == stage
    )
    asked = ITERATION.fullmatch(target)
    before = [name for n, name in iterations if asked is None or n < int(asked[1])]
    order = ["sft", "reward", *before]
    return [*(order[: order.index(target)] if target in order else order), target]


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake with these arguments; only the list of targets is captured, all else goes to the terminal."""
    listing = subprocess.PIPE if "--list-target-rules" in arguments else None
    return subprocess.run(["snakemake", *arguments], stdout=listing, encoding="utf-8", check=False)


def main(argv: list[str] | None = None) -> int:
    """Build the target named first, passing all other arguments to Snakemake; return its exit code if it fails."""
    given = sys.argv[1:] if argv is None else argv
    if not given or given[0].startswith("-"):
        print(__doc__)
        print("build_in_phases: no target\nHint: name it first, such as all.", file=sys.stderr)
        return 2
    target, options = given[0], given[1:]
    listed = snakemake("--list-target-rules", *options, "--", target)  # a target that is unknown is refused here
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
