"""What is saved for the backward pass: an axis independent of what is trained. The forward pass is dense.

    protocol         a `BackwardSaver`: attached to a network, asked what it kept, and taken off again
    convert          `norm`, `rand`, `bkrz`: a `Selector` says which part of an activation is kept; a `Site` is where
    gradient_norms   `wta`: token rows kept by chance, by their gradients of the epoch before
    recompute        `recompute_gelu`, `checkpoint`: exact, by computing again
    act8bit          `late`: everything in 8 bits, rows chosen in the backward pass

The pure choice is in `selection`, the layers that use it in `layers`, the elementwise work of `late` in `kernels`.
"""
