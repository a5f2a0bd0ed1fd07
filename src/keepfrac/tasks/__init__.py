"""Tasks: data, splits, labels, metrics and prediction, as LightningDataModules."""
