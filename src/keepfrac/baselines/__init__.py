"""What needs no network: baselines that a fine-tuned model has to beat."""
