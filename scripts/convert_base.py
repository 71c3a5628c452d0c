"""A base model as safetensors, from the GGUF file of an installed package or from a local folder."""

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.lib.data import licences, packages, shapes, sources
from scripts.lib.kinds.bases import ConvertBase
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError


def planned_folder(files: list[Path], planned: list[str]) -> Path:
    """The local folder that holds the files.

    Raises InputError if their contents changed after planning, or if they are not a model in Hugging Face format with
    float weights.
    """
    sources.verify(files, planned)
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"source: {sorted(names)} has no config.json or no .safetensors\n"
            "Hint: `path` must be a folder in Hugging Face format; pickled weights are not accepted."
        )
    folder = files[0].parent
    try:
        shapes.refuse_quantized(json.loads((folder / "config.json").read_bytes()))
    except ValueError as error:
        raise InputError(f"config.json: {error}\nHint: the folder is damaged; copy it again.") from error
    return folder


def load(folder: Path, dtype: str, **gguf: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder in `dtype`; no remote code, no pickles, no network.

    Raises InputError if transformers cannot load them or if there is no chat template.
    """
    contract.offline()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    weights_options = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": True}
    load_options = {"local_files_only": True, "trust_remote_code": False, **gguf}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **load_options)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), **load_options, **weights_options
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: transformers cannot load it: {error}\n"
            "Hint: use a causal language model with its tokenizer, of an architecture that transformers supports."
        ) from error
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: no chat template\nHint: add the file chat_template.jinja beside the tokenizer.")
    return model, tokenizer


def run(job: contract.Job[ConvertBase]) -> None:
    """Load the model, save it in `dtype` with its tokenizer, and check that the saved files load."""
    settings = job.settings
    if settings.kind == "gguf":
        file = packages.file(settings.package, settings.file)
        folder, gguf = file.parent, {"gguf_file": file.name}
        job.metrics = {"license": settings.license, "source_sha256": file_sha256(file)}
        job.metrics |= of_distribution(settings.package)
    else:
        folder, gguf = planned_folder(job.inputs["source"], settings.files), {}
        job.metrics = {**licences.described(folder, settings.license)}
    model, tokenizer = load(folder, settings.dtype, **gguf)
    shapes.check(job.runtime.shape, model.config.to_dict())

    def save(target: Path) -> None:
        from scripts.lib.models import loading

        loading.save(model, tokenizer, target, settings.dtype)
        if not gguf:
            licences.copy(folder, target)
        loading.load_policy(target, settings.dtype)
        loading.load_tokenizer(target)

    artifact.write_model(job.output, save)
    job.counts = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    job.note = f"{job.counts['parameters'] / 1e6:.1f}M parameters as {settings.dtype}"


def of_distribution(package: str) -> dict[str, str]:
    """Version and licence of the distribution that contains a package; "" for what its metadata lacks.

    Its licence need not be that of the weights inside: the configuration names that one, as `license`.
    """
    names = metadata.packages_distributions().get(package, [])
    if not names:
        return {"source_version": "", "source_license": ""}
    fields = metadata.metadata(names[0]).json
    licence = str(fields.get("license_expression") or fields.get("license") or "")
    return {
        "source_version": str(fields.get("version") or ""),
        "source_license": licence.splitlines()[0] if licence else "",
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("convert_base", run, ConvertBase, ("source*",), argv)


if __name__ == "__main__":
    sys.exit(main())
