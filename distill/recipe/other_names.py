"""Keys as people know them from other tools, with their place in this recipe.

From transformers' TrainingArguments, trl, peft's LoraConfig, Axolotl, LLaMA-Factory and DistillKit.
"""

from __future__ import annotations

OTHER_NAMES = {
    # TrainingArguments
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulate",
    "accumulation_steps": "train.accumulate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "min_lr": "train.lr_floor",
    "min_lr_ratio": "train.lr_floor",
    "max_grad_norm": "train.clip",
    "gradient_clipping": "train.clip",
    "adam_beta1": "train.betas",
    "adam_beta2": "train.betas",
    "optim": "train.optimizer",
    "eval_steps": "train.evaluate_every",
    "evaluation_strategy": "train.evaluate_every",
    "eval_strategy": "train.evaluate_every",
    "save_steps": "train.checkpoint_every",
    "save_strategy": "train.checkpoint_every",
    "load_best_model_at_end": "train.keep",
    "report_to": "train.trackers",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dropout": "train.model_dropout",
    "losses": "train.objective",
    "loss_functions": "train.objective",
    "alpha": "train.objective[0].weight",
    "kd_ratio": "train.objective[0].weight",
    # data
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "train_dataset": "data.train",
    "eval_dataset": "data.held_out",
    "test_size": "data.held_out",
    "val_set_size": "data.validation",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "block_size": "data.max_length",
    "sample_packing": "data.packing",
    "dataset_text_field": "data.text_column",
    "text_field": "data.text_column",
    # servers
    "api_key": "teacher.server.key_env",
    "base_url": "teacher.server.url",
    "served_model_name": "teacher.server.model",
    # models
    "model_name_or_path": "teacher.model",
    "base": "teacher.model",
    "base_model": "teacher.model",
    "teacher_model": "teacher.model",
    "teacher_model_name_or_path": "teacher.model",
    "student_model": "student.from",
    "torch_dtype": "teacher.dtype",
    "load_in_4bit": "teacher.quantization",
    "load_in_8bit": "teacher.quantization",
    # another section's name
    "training": "train",
    "finetuning_type": "specialize.method",
    # peft
    "r": "specialize.rank",
    "lora_r": "specialize.rank",
    "lora_rank": "specialize.rank",
    "lora_alpha": "specialize.alpha",
    "lora_dropout": "specialize.dropout",
    "target_modules": "specialize.targets",
    "lora_target_modules": "specialize.targets",
    "adapter": "specialize.method",
    "peft_type": "specialize.method",
    "num_virtual_tokens": "specialize.virtual_tokens",
}
DEVICE = " A GPU is used where there is one (`CUDA_VISIBLE_DEVICES` chooses it); leave it out."
ANSWERS = {
    "resume_from_checkpoint": " A stopped run goes on by itself; leave it out.",
    "output_dir": " The run's folder is the option `--run-dir`.",
    "format": " The kind of rows is told by their columns; leave it out.",
    "template": " The chat template is the tokenizer's; leave it out.",
    "device": DEVICE,
    "device_map": DEVICE,
    "recipe": " The file is the recipe: write `data`, `teacher`, `student` ... at its left edge.",
    "stage": " A stage is a command, as in `distill train`; leave it out.",
    "do_train": " `distill train` and `distill run` train; leave it out.",
}


def known_elsewhere(key: str, section: str, known: list[str]) -> str | None:
    """A hint for a key that another tool has under that name; None where none does.

    section: the path of the section in which the key stands. known: the keys of that section. Every
    section that trains has the keys of `train`, so there only the last part is named.
    """
    if key in ANSWERS:
        return ANSWERS[key]
    place = OTHER_NAMES.get(key)
    if place is None:
        return None
    name = place.rsplit(".", 1)[-1]
    return f" Did you mean `{name if section and name in known else place}`?"
