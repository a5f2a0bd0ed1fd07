"""What is saved for the backward pass: a second axis beside what is trained. The forward pass is that of the dense model.

    protocol         a `BackwardSaver`: attached to a network, asked what it kept, and taken off again
    convert          `norm`, `rand`, `bkrz`: a `Selector` says which part of an activation is kept; a `Site` is one place
                     of the network where that happens
    gradient_norms   `wta`: token rows kept by chance, by their gradients of the epoch before
    recompute        `recompute_gelu`, `checkpoint`: exact, by computing again
    act8bit          `late`: everything in 8 bits, rows chosen in the backward pass
"""
