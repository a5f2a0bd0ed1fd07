"""Loading, naming the parts of, cutting and saving Hugging Face models."""
