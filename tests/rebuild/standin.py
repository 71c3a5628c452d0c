"""Stands in for every stage: takes a rule's command line and writes, at once, an output that its digests decide.

Run in place of `python -m scripts.NAME …`. The command line, the check of the code, the digests of the inputs and the
manifest are the checkout's own (scripts/lib/stage/contract.py); left out are the work, and the types of settings, whose
package takes longer to import than all the rest. The bytes written are a digest of stage, settings, code and inputs.
Environment:

- STANDIN_FAIL: outputs, separated by spaces, whose making fails.
- STANDIN_CODE: a code digest to put into the bytes in place of the real one: a change of code that changes no result.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import code_digest, text_sha256
from scripts.lib.stage.errors import InputError

COMMON = {"--settings", "--code", "--runtime", "--output", "--results"}


class Plain(dict):
    """Settings or runtime keys as they are, without a type."""

    device = "cpu"

    def model_dump(self, **_: object) -> dict:
        """As a block does."""
        return dict(self)


def run(job: contract.Job) -> None:
    """Write a table, a page or a model folder, whichever the output's name asks for."""
    if str(job.output) in os.environ.get("STANDIN_FAIL", "").split():
        raise InputError("the stand-in was told to fail")
    code = os.environ.get("STANDIN_CODE") or code_digest(job.stage, job.settings)
    inputs = {name: [artifact.input_digest(path) for path in paths] for name, paths in job.inputs.items()}
    text = text_sha256(artifact.canonical_json([job.stage, job.settings, code, inputs])) + "\n"
    if job.output.suffix:
        artifact.write_text(job.output, text)
    else:
        artifact.write_model(job.output, lambda folder: (folder / "model.safetensors").write_text(text))


if __name__ == "__main__":
    if sys.argv[1] == "-c":  # asked what it lacks: nothing
        sys.exit()
    _, module, *given = sys.argv[1:]
    names = tuple(f"{word[2:]}*" for word in given if word.startswith("--") and word not in COMMON)
    contract.parsed = lambda settings, runtime, kind: (Plain(json.loads(settings)), Plain(json.loads(runtime)))
    sys.exit(contract.execute(module.removeprefix("scripts."), run, None, names, given))
