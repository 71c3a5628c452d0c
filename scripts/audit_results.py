"""`snakemake audit`: checks whether every artifact on disk agrees with the plan, and prints what differs.

Snakemake decides by its own records in .snakemake and trusts files of which it has no record. If the records were
lost, or the results were copied here without them, the manifests still say what each artifact was made with.
"""

import argparse
import json
import sys
from pathlib import Path

from scripts.lib.planning import audit, config
from scripts.lib.planning.plan import Plan


def main(argv: list[str] | None = None) -> int:
    """Print what differs; 0 where nothing does, 2 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.audit_results", description=__doc__)
    parser.add_argument("--configfile", nargs="*", type=Path, default=[], help="a preset, overlays; as for Snakemake")
    parser.add_argument("--config", default="{}", help="JSON: settings that override them")
    args = parser.parse_args(argv)
    plan = Plan(config.load(*args.configfile, said=json.loads(args.config)))
    artifacts = plan.artifacts(*plan.asked("all"))
    built = [path for path in artifacts if audit.made(path)]
    differ = {path: words for path in built if (words := audit.differences(plan, path))}
    for path, words in differ.items():
        print(f"{path}: {'; '.join(words)}")
    notes = [f"{len(artifacts) - len(built)} of {len(artifacts)} not made yet"] if len(built) < len(artifacts) else []
    pruned = sum(audit.pruned(plan, path) for path in built)
    notes += [f"weights of {pruned} pruned"] if pruned else []
    remarks = f" ({'; '.join(notes)})" if notes else ""
    if not differ:
        print(f"{len(built)} artifacts agree with the plan{remarks}")
        return 0
    print(f"{len(differ)} of {len(built)} artifacts differ from the plan{remarks}")
    print(
        "Hint: Snakemake rebuilds what differs from its records in .snakemake. If `snakemake -n all` lists nothing, "
        "delete the manifests (X.json) of these artifacts and run `snakemake all`, or restore what they were made with."
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
