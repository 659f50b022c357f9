"""Time-variant masking in a script that uses the Hugging Face Trainer: lines marked (+) are new.

python examples/trainer.py [output folder]
"""

import sys

from scraps import paragraphs, tiny_bert, tokenised, train_tokenizer
from transformers import TrainingArguments, set_seed

import chronomask as cm  # (+)


def main(output: str = "trainer_output") -> None:
    """Train, evaluate, and show how the ratio fell."""
    set_seed(0)
    texts = paragraphs()
    tokenizer = train_tokenizer(texts)
    rows = tokenised(tokenizer, texts)
    arguments = TrainingArguments(
        output,
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        logging_steps=10,
        save_steps=30,
        dataloader_num_workers=2,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
    )
    # (+) instead of Trainer, and without DataCollatorForLanguageModeling
    trainer = cm.TimeVariantTrainer(
        model=tiny_bert(tokenizer),
        args=arguments,
        train_dataset=rows[:-64],
        eval_dataset=rows[-64:],
        processing_class=tokenizer,
        masking=cm.MaskingConfig(ratio=cm.ratio.Linear(start=0.30, end=0.15)),  # (+)
    )
    trainer.train()
    for line in trainer.state.log_history:
        if "masking_ratio" in line:
            print(
                f"step {line['step']}: ratio {line['masking_ratio']:.3f}, loss {line['loss']:.3f}"
            )
    print(f"loss at 15 %: {trainer.evaluate()['eval_loss']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
