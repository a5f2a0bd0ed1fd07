"""sentence-transformers' own trainer with `save_less`: its inner model is a stock encoder."""

import keepfrac


def train(encoder, pairs, folder):
    """Trains a SentenceTransformer in place; returns what was kept.

    Args:
        encoder: a SentenceTransformer, whose first module holds a stock BERT, RoBERTa or DistilBERT.
        pairs: a data set of columns anchor and positive.
        folder: of the checkpoints.
    """
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    handle = keepfrac.save_less(encoder[0].auto_model, keep_frac=0.3)
    arguments = SentenceTransformerTrainingArguments(str(folder), max_steps=2, report_to="none", use_cpu=True)
    loss = MultipleNegativesRankingLoss(encoder)
    SentenceTransformerTrainer(encoder, arguments, train_dataset=pairs, loss=loss).train()
    kept = handle.kept()
    handle.restore()
    return kept
