"""Low-rank adapters by peft: their configuration, and whole weights with the adapters merged in.

LoRA: Hu et al. 2021. With nf4 the frozen weights are held in 4 bits while training (QLoRA: Dettmers et al. 2023); what
is saved are the original weights of the start, never dequantised ones, plus the adapters' product.
"""

from typing import Any

from scripts.lib.stage.errors import InputError

HEAD = "score"  # of a reward model; it starts from random weights, so it is trained whole


def config(lora: dict[str, Any] | None, model: Any, task: str) -> Any:
    """peft's configuration for a model, or None where all weights are trained. `task` is CAUSAL_LM or SEQ_CLS.

    Raises InputError for targets that the model does not have, and for the head, which TRL multiplies by itself.
    """
    if lora is None:
        return None
    import torch
    from peft import LoraConfig

    targets = lora["targets"]
    if targets != ["all-linear"]:
        linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        known = sorted(linear - {"lm_head", HEAD})
        if missing := [name for name in targets if name not in known]:
            raise InputError(
                f"lora.targets names {missing}; the model's linear layers are {', '.join(known)}.\n"
                "Hint: name some of these, or leave `targets` out for all of them."
            )
    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=[HEAD] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def dropout(lora: dict[str, Any] | None) -> float:
    """The adapters' dropout. Where there is some, TRL must not turn all dropout off, as it does but in SFT."""
    return float(lora["dropout"]) if lora else 0.0


def in_float32(model: Any) -> None:
    """Keep trained weights in float32: in bfloat16 small steps vanish.

    peft raises its adapters only, not the head, and TRL rounds those on a quantised model to bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged(trained: Any, state: dict[str, Any] | None, start: Any) -> Any:
    """The start's weights with the trained adapters merged in, in the start's own precision; a plain model.

    `state` are the trained weights by name where the model's own are spread over processes, else None.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapters = get_peft_model_state_dict(trained, state_dict=state, save_embedding_layers=False)
    adapters = {name: weight.to("cpu") for name, weight in adapters.items()}
    whole = get_peft_model(start, trained.peft_config["default"])
    loaded: Any = set_peft_model_state_dict(whole, adapters)
    if missed := loaded.unexpected_keys:
        raise InputError(f"adapters that belong nowhere: {missed}\nHint: this is a bug; please report it.")
    return whole.merge_and_unload()
