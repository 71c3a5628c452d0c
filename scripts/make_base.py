"""A small base model from random weights: a tokenizer of the world's words and a Llama after a short pre-training run.

The chat template and its special tokens resemble Llama 3's: one BOS, a header before each turn, an end-of-turn token
after it, and a padding token that differs from all others.
"""

import sys
from typing import TYPE_CHECKING

from scripts.lib.data import world
from scripts.lib.kinds.bases import MakeBase
from scripts.lib.stage import contract

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, HEADER, HEADER_END, TURN_END, UNKNOWN = (
    "[PAD]",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[UNK]",
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CONTEXT = 128


def make_tokenizer(texts: list[str]) -> "PreTrainedTokenizerFast":
    """A word-level tokenizer trained on texts; its vocabulary always has the template's roles and line breaks."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, EOS, HEADER, HEADER_END, TURN_END, UNKNOWN]
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), "removed"),
            pre_tokenizers.Split(Regex(r"\n\n|\w+|[^\w\s]"), "isolated"),
        ]
    )
    trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*texts, "system\n\nuser\n\nassistant"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[HEADER, HEADER_END, TURN_END],
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = TEMPLATE
    return fast


def run(job: contract.Job[MakeBase]) -> None:
    """Make the tokenizer and the model, pre-train the model on the world's mixed-quality text, and save both."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed
    from trl import SFTConfig, SFTTrainer

    from scripts.lib.models import chat, loading, training
    from scripts.lib.stage import artifact

    settings = job.settings
    loading.prepare(job.runtime)
    texts = world.corpus(settings.texts, settings.seed)
    tokenizer = make_tokenizer(texts)
    set_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=2 * settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=settings.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        )
    )
    rows = [{"input_ids": chat.encode(tokenizer, BOS + text + EOS)} for text in texts]
    rows, dropped = training.fitting(rows, ("input_ids",), CONTEXT)
    trainer = SFTTrainer(
        model=model,
        args=training.arguments(SFTConfig, job, len(rows), max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    job.metrics = training.train(trainer, job)
    job.counts = {
        "texts_in": settings.texts,
        "dropped_too_long": dropped,
        "texts_trained": len(rows),
        "parameters": model.num_parameters(),
    }
    artifact.write_model(job.output, lambda folder: loading.save(model, tokenizer, folder, job.settings.dtype))
    job.note = f"{model.num_parameters():,} parameters, {len(tokenizer)} words, loss {job.metrics['last_loss']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("make_base", run, MakeBase, (), argv)


if __name__ == "__main__":
    sys.exit(main())
