"""What `model.tokenizer` says of a vocabulary that is to be made. Nothing heavy is imported here."""

from typing import ClassVar

from keepfrac.settings import Settings, choice, count, flag, settings

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@settings
class Vocabulary(Settings):
    """The keys of `model.tokenizer`, where it is neither a name nor a folder."""

    where: ClassVar[str] = "model.tokenizer"

    kind: str = choice("what an entry is", "words", "wordpiece")
    size: int = count("most entries, the special ones included", len(SPECIAL) + 1)
    min_count: int = count("how often a word (of wordpiece: a pair that is merged) has to occur")
    lowercase: bool = flag("whether capitals count as small letters (and, of wordpiece, letters lose their accents)")
