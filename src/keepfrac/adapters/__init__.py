"""Factorised linears: decomposition, rank arithmetic, merging. Knows torch alone."""
