"""A teacher, and the distillation losses: for every method, in addition to its own losses."""
