"""A teacher, and what a student is held to: for every method, beside its own losses."""
