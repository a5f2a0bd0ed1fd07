"""A point that all processes of a run pass together."""


def wait_for_all() -> None:
    """Returns once all processes of the run have come here."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
