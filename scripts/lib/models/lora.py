"""Low-rank adapters by peft: their configuration, and full weights with the adapters merged in.

LoRA: Hu et al. 2021. With nf4 the frozen weights are kept in 4 bits during training (QLoRA: Dettmers et al. 2023). The
saved model is the original start weights, never dequantised ones, plus the product of the adapter matrices.
"""

from typing import Any

from scripts.lib.kinds.trainer import Lora
from scripts.lib.stage.errors import InputError

HEAD = "score"  # of a reward model; it starts from random weights, so all of it is trained


def config(lora: Lora | None, model: Any, task: str) -> Any:
    """peft's configuration for a model, or None if all weights are trained. `task` is CAUSAL_LM or SEQ_CLS.

    Raises InputError for targets that the model does not have, and for the head, which TRL applies itself.
    """
    if lora is None:
        return None
    import torch
    from peft import LoraConfig

    targets = lora.targets
    if targets != ["all-linear"]:
        linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        known = sorted(linear - {"lm_head", HEAD})
        if missing := [name for name in targets if name not in known]:
            raise InputError(
                f"lora.targets names {missing}; the model's linear layers are {', '.join(known)}.\n"
                "Hint: name some of these, or omit `targets` to adapt all of them."
            )
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides by r, so a fraction is fine
        lora_dropout=lora.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=[HEAD] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def dropout(lora: Lora | None) -> float:
    """The adapters' dropout. If it is not 0, TRL must not disable all dropout, its default for DPO and rewards."""
    return float(lora.dropout) if lora else 0.0


def in_float32(model: Any) -> None:
    """Cast trained weights to float32: in bfloat16 small updates are rounded away.

    peft casts its adapters only, not the head, and TRL rounds the adapters of a quantised model to bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merged(trained: Any, state: dict[str, Any] | None, start: Any) -> Any:
    """A plain model: the weights of `start` with the trained adapters merged in, in the precision of `start`.

    `state` holds the trained weights by name if ZeRO-3 partitions them over processes; otherwise it is None.
    Raises InputError for adapters that match no module of `start`.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    adapters = get_peft_model_state_dict(trained, state_dict=state, save_embedding_layers=False)
    adapters = {name: weight.to("cpu") for name, weight in adapters.items()}
    whole = get_peft_model(start, trained.peft_config["default"])
    loaded: Any = set_peft_model_state_dict(whole, adapters)
    if unexpected := loaded.unexpected_keys:
        raise InputError(f"adapters match no module of the model: {unexpected}\nHint: this is a bug; please report it.")
    return whole.merge_and_unload()
