"""TRL's DPOTrainer fed with reference log-probabilities that the workflow has computed already."""

from typing import Any

from trl import DPOTrainer


class ReferenceDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that takes token rows with reference columns as they are, and loads no reference model.

    Rows hold prompt_ids, chosen_ids, rejected_ids, ref_chosen_logps and ref_rejected_logps. TRL (1.16) would
    tokenise text, append eos, and compute the reference columns itself; its own columns of that name are ignored
    unless `precompute_ref_log_probs` is on, and doubled when it is, hence two of the overrides.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _prepare_inputs(self, inputs: Any) -> Any:
        # Under DeepSpeed transformers rounds all that is no integer to the weights' format; -123.4 has no bfloat16.
        exact = {name: value for name, value in inputs.items() if name.startswith("ref_")}
        prepared = super()._prepare_inputs(inputs)
        return prepared | {name: value.to(self.args.device) for name, value in exact.items()}

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset
