"""TRL's DPOTrainer with reference log-probabilities that the workflow has already computed."""

from typing import Any

from trl import DPOTrainer

from scripts.lib.models.accumulation import Batch, RowMeans


class ReferenceDPOTrainer(RowMeans, DPOTrainer):  # type: ignore[misc]
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

    def sizes(self, batch: Batch) -> list[int]:
        """Pairs, and tokens of their chosen answers, over which the loss `sft` is a mean."""
        (pairs,) = super().sizes(batch)
        return [pairs, int(batch["completion_mask"][:pairs, 1:].sum())]

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's part of the step's loss: each loss of the list by its share of what it is a mean over."""
        of_pairs, of_tokens = self.shares(inputs, num_items_in_batch)
        weights = self.args.loss_weights or [1.0] * len(self.loss_types)  # type: ignore[attr-defined]
        shares = [of_tokens if loss == "sft" else of_pairs for loss in self.loss_types]
        self.loss_weights = [weight * share for weight, share in zip(weights, shares, strict=True)]
        return super().compute_loss(model, inputs)  # type: ignore[no-untyped-call]
