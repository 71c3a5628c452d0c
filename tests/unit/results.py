"""Results made up for the tests of the tools that read them: artifacts of a few bytes with their manifests."""

from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256


def make(root, path, stage="curate_data", settings=None, counts=None, metrics=None, run=None, **inputs):
    """Write the artifact at `path` beneath root as a stage would; a path without ending is a folder of weights.

    `inputs` are paths by role, of artifacts beneath root or of source files. Returns the artifact's digest.
    """
    target = root / path
    if target.suffix:
        artifact.write_text(target, f"bytes of {path}")
        output = file_sha256(target)
    else:

        def save(folder):
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(path.encode())

        artifact.write_model(target, save)
        output = file_sha256(artifact.digests_path(target))
    read = {role: [recorded(root, name) for name in names] for role, names in inputs.items()}
    manifest = {"format": 1, "stage": stage, "settings": settings or {}, "code": f"{stage}:0", "inputs": read}
    manifest |= {"output": output, "counts": counts or {}, "metrics": metrics or {}}
    artifact.write_json(artifact.manifest_path(target), manifest)
    if run:
        artifact.write_json(artifact.stem(target).with_name(f"{artifact.stem(target).name}.run.json"), run)
    return output


def recorded(root, name):
    """An input as a manifest records it."""
    file = root / name
    digests = artifact.digests_path(file)
    return {"path": name, "sha256": file_sha256(digests if digests.exists() else file) if file.exists() else "5" * 64}
