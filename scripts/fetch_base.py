"""A base model from a hub at one commit: safetensors weights, configuration, tokenizer, chat template and card."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from scripts.lib.data import hub, licences, shapes, sources
from scripts.lib.kinds.bases import FetchBase, Shape
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

INDEX = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
OTHERS = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
}  # fmt: skip


def weights(files: list[str]) -> list[str]:
    """The files of a repository that hold its weights. Raises InputError if it has none as safetensors."""
    parts = [name for name in files if WEIGHTS.fullmatch(name)]
    if "config.json" not in files or not parts:
        pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
        text = f"weights are pickled ({', '.join(pickled)}), which are not read" if pickled else "no weights there"
        raise InputError(
            f"repo: no config.json with model.safetensors or its parts; {text}\n"
            "Hint: name a repository in Hugging Face format whose weights are safetensors."
        )
    return parts


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the fetched files, empty if the model does not have it; InputError if it cannot be read."""
    if not (folder / name).is_file():
        return {}
    try:
        value = json.loads((folder / name).read_bytes())
    except ValueError as error:
        raise InputError(f"{name}: {error}\nHint: the repository is damaged; choose another revision.") from error
    return value if isinstance(value, dict) else {}


def check(folder: Path, settings: FetchBase, shape: Shape | None) -> None:
    """Raise InputError for a model that needs code of its own, is quantised, has another shape, or no chat template."""
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in read(folder, name):
            raise InputError(
                f"{name}: has auto_map: the model needs code from its repository, which is never run\n"
                "Hint: choose a model of an architecture that transformers has."
            )
    shapes.refuse_quantized(read(folder, "config.json"))
    shapes.check(shape, read(folder, "config.json"))
    own = (folder / "chat_template.jinja").is_file() or "chat_template" in read(folder, "tokenizer_config.json")
    if not own and settings.chat_template is None:
        raise InputError(
            "the model has no chat template\n"
            "Hint: name one by `chat_template`, such as llama3.jinja of config/templates."
        )


def template(name: str, sha256: str | None) -> Path:
    """Our own chat template. Raises InputError if its bytes are not those that were planned."""
    path = sources.TEMPLATES / name
    if not path.is_file() or file_sha256(path) != sha256:
        raise InputError(f"{path}: changed after the build was planned\nHint: start Snakemake again.")
    return path


def run(job: contract.Job[FetchBase]) -> None:
    """Fetch what is small first, and see that the model can be used; then its weights."""
    settings, fetched = job.settings, job.work / "fetched"
    repository = hub.find(settings.repo, settings.revision, "model")
    files = sorted(repository.files)
    large = weights(files)
    small = [name for name in files if name in OTHERS or name == INDEX or name in licences.names(files)]
    hub.fetch(repository, small, fetched)
    check(fetched, settings, job.runtime.shape)
    facts = licences.described(fetched, settings.license)
    wanted = set(read(fetched, INDEX).get("weight_map", {}).values()) or {"model.safetensors"}
    if missing := sorted(wanted - set(large)):
        raise InputError(f"repo: {', '.join(missing)} missing\nHint: choose a revision that is whole.")
    large = sorted(wanted)
    hub.fetch(repository, large, fetched)
    names = [*small, *large]

    def save(folder: Path) -> None:
        if settings.chat_template is not None:
            hub.take(fetched, [name for name in names if name != "chat_template.jinja"], folder)
            (folder / "chat_template.jinja").write_bytes(
                template(settings.chat_template, settings.chat_template_sha256).read_bytes()
            )
        else:
            hub.take(fetched, names, folder)

    artifact.write_model(job.output, save)
    job.metrics = {"repo": repository.name, "commit": repository.commit, **facts}
    job.counts = {"files": len(names), "bytes": sum(repository.files[name].size for name in names)}
    job.note = f"{job.counts['bytes'] / 1e9:.2f} GB of {repository.name} at {repository.commit[:10]}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("fetch_base", run, FetchBase, (), argv)


if __name__ == "__main__":
    sys.exit(main())
