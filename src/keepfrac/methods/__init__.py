"""One LightningModule per method family; leaves of the import tree, none imports another."""
