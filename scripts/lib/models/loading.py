"""Loading and saving models: digests verified first, safetensors only, no remote code, never from a hub."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from scripts.lib.data import shapes
from scripts.lib.kinds.common import Typed
from scripts.lib.kinds.runtime import Runtime
from scripts.lib.kinds.trainer import Finetuned
from scripts.lib.stage import ranks
from scripts.lib.stage.contract import Job, offline
from scripts.lib.stage.errors import InputError

offline()

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def prepare(runtime: Runtime) -> torch.device:
    """Set the number of PyTorch threads and return the device that the runtime keys ask for.

    Raises InputError if a GPU is requested and PyTorch sees none: the step would run for days on the node's CPU cores.
    """
    if runtime.torch_threads:
        torch.set_num_threads(runtime.torch_threads)
    wanted = runtime.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            f"runtime.device is cuda, but PyTorch {torch.__version__}, {built}, sees no GPU.\n"
            f"Hint: an environment made on a machine without a GPU has no CUDA: rebuild {sys.prefix} with `make "
            ".venv/ready GPU=1` or `make rollout-env GPU=1`; or check that nvidia-smi finds the driver; or set "
            "runtime.device to auto."
        )
    return torch.device(wanted, ranks.local()) if wanted == "cuda" else torch.device(wanted)


def refuse_beyond(folder: Path, tokens: int, what: str, hint: str) -> None:
    """Raise InputError where `what`, of so many tokens, is longer than the model in a folder is made for.

    The plan knows most limits before anything runs, but not that of a model which was still to be fetched. Learned
    positions end there; rotary ones go on, to values that the model has never seen.
    """
    shapes.refuse_beyond(json.loads((folder / "config.json").read_bytes()), tokens, what, hint)


def refuse_long_rows(folder: Path, settings: Finetuned) -> None:
    """Raise InputError where a step would train on longer rows than the model that it starts from is made for."""
    refuse_beyond(folder, settings.max_length, "max_length", "lower it: longer rows are dropped.")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights, with its chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def attention(job: Job[Typed], device: torch.device) -> str:
    """The attention kernel that `runtime.attention` names, or the fastest available; recorded in the job's facts.

    flash_attention_2 needs a GPU and bfloat16. Raises InputError if it is requested but not available.
    """
    requested, dtype = job.runtime.attention, job.settings.dtype
    missing = [
        requirement
        for requirement, met in {
            "the package flash-attn": importlib.util.find_spec("flash_attn") is not None,
            "a GPU": device.type == "cuda",
            "dtype: bfloat16": dtype == "bfloat16",
        }.items()
        if not met
    ]
    if requested == "flash_attention_2" and missing:
        raise InputError(
            f"runtime.attention is flash_attention_2, which needs {', '.join(missing)}.\n"
            "Hint: set runtime.attention to auto, which takes the fastest kernel available."
        )
    chosen = str(requested) if requested != "auto" else "sdpa" if missing else "flash_attention_2"
    job.facts["attention"] = chosen
    return chosen


def four_bits(dtype: str) -> BitsAndBytesConfig:
    """nf4 with double quantisation for all linear layers but the head (QLoRA, section 3).

    Raises InputError if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "lora.quantization is nf4, but bitsandbytes is not installed.\n"
            "Hint: pip install -r envs/requirements-qlora.txt, or set `quantization: null`."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _loaded(kind: Any, folder: Path, dtype: str, quantization: str | None, device: Any, **options: Any) -> Any:
    if quantization is not None:
        options |= {"quantization_config": four_bits(dtype), "device_map": {"": device}}
    model = kind.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, **options
    )
    if quantization is not None:
        # On some CPUs bitsandbytes repacks weights in evaluation mode: other rounding, and no gradients.
        for part in model.modules():
            if hasattr(part, "support_avx512bf16_for_cpu"):
                part.support_avx512bf16_for_cpu = False
    elif device is not None:
        model.to(device)
    return model


def load_policy(
    folder: Path,
    dtype: str,
    device: torch.device | None = None,
    attention: str = "sdpa",
    quantization: str | None = None,
) -> PreTrainedModel:
    """A causal language model. The stage has already verified its digests (scripts/lib/stage/contract.py)."""
    model: PreTrainedModel = _loaded(
        AutoModelForCausalLM, folder, dtype, quantization, device, attn_implementation=attention
    )
    return model


def load_reward(
    folder: Path,
    dtype: str,
    device: torch.device | None = None,
    attention: str = "sdpa",
    quantization: str | None = None,
) -> PreTrainedModel:
    """A sequence classifier with one label: a scalar head on the last token."""
    options = {"attn_implementation": attention, "num_labels": 1}
    model: PreTrainedModel = _loaded(AutoModelForSequenceClassification, folder, dtype, quantization, device, **options)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    """Save weights, configuration, tokenizer and chat template. Trainer.save_model would also write a pickle."""
    model.config.use_cache = True
    model.to(getattr(torch, dtype)).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def generation_config(folder: Path) -> GenerationConfig | None:
    """The generation config that a model ships, with its stop tokens; None if it ships none."""
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)
