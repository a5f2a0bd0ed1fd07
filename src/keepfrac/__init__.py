"""keepfrac: cheap fine-tuning and small serving of transformers, with what each way of doing it costs."""
