"""Loading and saving models: verified when read, safetensors only, no remote code, never from a hub."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

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


def prepare(runtime: dict[str, Any]) -> torch.device:
    """Set the math threads and return the device that the runtime keys ask for.

    Raises InputError where a GPU is asked for and PyTorch sees none: days on the cores of a GPU node would follow.
    """
    if runtime.get("torch_threads"):
        torch.set_num_threads(runtime["torch_threads"])
    wanted = runtime.get("device", "auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            f"runtime.device is cuda, but PyTorch {torch.__version__}, {built}, sees no GPU.\n"
            f"Hint: an environment made on a machine without a GPU has no CUDA: make {sys.prefix} again, as `make "
            ".venv/ready GPU=1` or `make rollout-env GPU=1` do; or see whether nvidia-smi finds the driver; or set "
            "runtime.device to auto."
        )
    return torch.device(wanted, ranks.local()) if wanted == "cuda" else torch.device(wanted)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights, with its chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def attention(job: Job, device: torch.device) -> str:
    """The attention kernel that `runtime.attention` asks for, or the fastest there is; noted in the job's facts.

    flash_attention_2 takes 16-bit numbers on a GPU only. Raises InputError where it is asked for and cannot be had.
    """
    asked, dtype = job.runtime["attention"], job.settings["dtype"]
    missing = [
        what
        for what, there in {
            "the package flash-attn": importlib.util.find_spec("flash_attn") is not None,
            "a GPU": device.type == "cuda",
            "dtype: bfloat16": dtype == "bfloat16",
        }.items()
        if not there
    ]
    if asked == "flash_attention_2" and missing:
        raise InputError(
            f"runtime.attention is flash_attention_2, which needs {', '.join(missing)}.\n"
            "Hint: set runtime.attention to auto, which takes the fastest kernel there is."
        )
    chosen = str(asked) if asked != "auto" else "sdpa" if missing else "flash_attention_2"
    job.facts["attention"] = chosen
    return chosen


def four_bits(dtype: str) -> BitsAndBytesConfig:
    """Weights of linear layers, but the head, in nf4 with doubly quantised constants (QLoRA, section 3).

    Raises InputError where bitsandbytes is not installed.
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


def _loaded(kind: Any, folder: Path, dtype: str, quantization: str | None, device: Any, **own: Any) -> Any:
    if quantization is not None:
        own |= {"quantization_config": four_bits(dtype), "device_map": {"": device}}
    model = kind.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, **own
    )
    if quantization is not None:
        # On some processors bitsandbytes repacks weights in evaluation, for another arithmetic and without gradients.
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
    """A causal language model; the stage has verified its digests already (scripts/lib/stage/contract.py)."""
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
    """A sequence classifier with one label: the scalar head on the last token."""
    own = {"attn_implementation": attention, "num_labels": 1}
    model: PreTrainedModel = _loaded(AutoModelForSequenceClassification, folder, dtype, quantization, device, **own)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    """Weights, configuration, tokenizer and chat template. Not Trainer.save_model, which adds a pickle."""
    model.config.use_cache = True
    model.to(getattr(torch, dtype)).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def generation_config(folder: Path) -> GenerationConfig | None:
    """The model's own list of stop tokens, if it ships one."""
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)
