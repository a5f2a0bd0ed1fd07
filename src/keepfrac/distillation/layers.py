"""Which layer of the teacher each layer of the student is held to."""

from __future__ import annotations

from collections.abc import Sequence

from keepfrac.errors import UserError


def layer_map(kind: str | Sequence[int], student: int, teacher: int) -> list[int]:
    """Returns the teacher's layer (from 1) of each of the student's layers, first to last.

    Args:
        kind: uniform: layer m of M belongs to round(m N / M) (TinyBERT's map); last: the student's layers belong to
            the teacher's last ones; or a list of the teacher's layers, from 1.
        student: M, how many layers the student has.
        teacher: N, how many the teacher has.

    Raises:
        UserError: the list does not fit, or `last` of a teacher with fewer layers.
    """
    if isinstance(kind, str):
        if kind == "uniform":
            return [max(1, int(m * teacher / student + 0.5)) for m in range(1, student + 1)]
        if kind == "last" and teacher >= student:
            return list(range(teacher - student + 1, teacher + 1))
        raise UserError(
            f"distill.layer_map={kind}: must be uniform, last (for a teacher with at least the student's"
            f" {student} layers; it has {teacher}), or a list of the teacher's layers"
        )
    if len(kind) != student or not all(isinstance(n, int) and 1 <= n <= teacher for n in kind):
        raise UserError(
            f"distill.layer_map={list(kind)}: must give one layer of the teacher, 1 to {teacher}, for each of the"
            f" student's {student} layers"
        )
    return list(kind)
