"""What is saved for the backward pass.

The forward pass is dense and exact. A `Selector` says which part of an activation is kept for the weight gradient; a
`Site` is one place of the network where that happens. `convert.sparsify` puts the sites into a stock model.
"""
