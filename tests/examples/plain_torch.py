"""A plain torch loop, in bf16 by autocast, that saves less for its backward pass."""

import torch

import keepfrac


def train(model, batches, precision=torch.bfloat16):
    """Trains in place; returns the losses, and what was kept."""
    losses = []
    handle = keepfrac.save_less(model, keep_frac=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for batch in batches:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    kept = handle.kept()
    handle.restore()
    return losses, kept
