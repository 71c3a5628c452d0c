"""TRL's DPOTrainer with reference log-probabilities that the workflow has already computed."""

from typing import Any

from trl import DPOTrainer


class ReferenceDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that uses token rows with reference columns as they are, and loads no reference model.

    Rows hold prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps and ref_rejected_logps. TRL (1.16) would
    tokenise text, append eos, and compute the reference columns itself. It ignores existing columns of that name
    unless `precompute_ref_log_probs` is on, and then adds them a second time; hence two of the overrides.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _prepare_inputs(self, inputs: Any) -> Any:
        # Under DeepSpeed, transformers casts all floating-point inputs to the weights' dtype; bfloat16 cannot hold
        # -123.4 exactly.
        exact = {name: value for name, value in inputs.items() if name.startswith("ref_")}
        prepared = super()._prepare_inputs(inputs)
        return prepared | {name: value.to(self.args.device) for name, value in exact.items()}

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset
