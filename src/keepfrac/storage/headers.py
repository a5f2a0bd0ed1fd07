"""What a yaml file says of itself in the comment that it begins with."""

import itertools


def header(text: str) -> tuple[str, list[str]]:
    """Returns the leading comment of a yaml file as one line, and the lines below it; "# @package" is in neither."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    comment = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    return " ".join(line[1:].strip() for line in comment), lines[len(comment) :]


def first_sentence(text: str) -> str:
    """Returns the first sentence of a yaml file's leading comment, without its full stop."""
    return header(text)[0].partition(". ")[0].rstrip(".")
