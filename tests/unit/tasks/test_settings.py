"""Settings of tasks that cannot be are refused by name, before any data is read."""

import pytest

from keepfrac.errors import UserError
from tests.unit.tasks.conftest import settings_of
from tests.unit.tasks.test_generation import E2E

CASES = [
    ("sst2", {"rows": 0}, "task.rows=0: must be a whole number >= 1 and < 2^32, or null"),
    ("sst2", {"rows": -1}, "task.rows=-1"),
    ("sst2", {"rows": 1.5}, "task.rows=1.5"),
    ("sst2", {"rows": True}, "task.rows=true"),
    ("sst2", {"rows": "ten"}, "task.rows=ten"),
    ("sst2", {"max_length": 2}, "task.max_length=2"),
    ("sst2", {"batch_size": 0}, "batch_size=0"),
    ("sst2", {"best_metric": "mcc"}, "task.best_metric=mcc: allowed are loss and this task's metrics, accuracy"),
    ("sst2", {"metrics": ["typo"], "best_metric": None}, "typo is no metric"),
    ("sst2", {"test": "official"}, "task.test=official: allowed for sst2 are dev"),
    ("sst2", {"name": "typo"}, "task.name=typo: must be one of cola, "),
    ("yelp", {"offline": "tape"}, "task.offline=tape: must be one of movie_reviews, or null"),
    ("csv", {"labels": ["a"]}, "allowed are two or more different labels"),
    ("csv", {"labels": ["a", "a"]}, "allowed are two or more different labels"),
    ("csv", {"labels": ["a", "b"], "problem": "regression"}, "a regression has none"),
    ("gaiic", {"folds": 1, "fold": 0}, "task.fold"),
    ("gaiic", {"folds": 5, "fold": None}, "task.fold"),
    ("gaiic", {"folds": 5, "fold": 5}, "task.fold"),
    ("gaiic", {"folds": None, "fold": 0}, "task.fold"),
    ("mlm", {}, "either task@task.of="),
    ("mlm", {"text_file": "a", "of": settings_of("sst2")}, "either task@task.of="),
    ("mlm", {"of": "gaiic"}, "type task@task.of=gaiic"),
    ("mlm", {"text_file": "a", "mask_frac": 1.0}, "mask_frac=1.0"),
    ("mlm", {"text_file": "a", "span": 0}, "span=0"),
    ("mlm", {"text_file": "a", "metrics": ["accuracy"], "best_metric": None}, "no metric of a masked_lm"),
    ("mlm", {"text_file": "nowhere.txt"}, "nowhere"),
    ("e2e", {"layout": "rotowire"}, "layout=rotowire: must be one of e2e, dart, webnlg"),
    ("e2e", {"prompt": "say it"}, "must have {meaning}"),
    ("e2e", {"beams": 0}, "beams=0: must be a whole number >= 1"),
    ("e2e", {"no_repeat": -1}, "no_repeat=-1"),
    ("e2e", {"eval_examples": 0}, "eval_examples=0"),
    ("e2e", {"max_new_tokens": 48}, "must be less than task.max_length=48"),
    ("e2e", {"label_smoothing": 1.0}, "must be a number in [0, 1)"),
    ("e2e", {"metrics": ["accuracy"], "best_metric": None}, "of a generation; allowed are bleu, nist, rouge_l, chrf"),
    ("e2e", {"best_metric": "meteor"}, "best_metric=meteor: allowed are loss"),
]
FITS = {"e2e": {"data_dir": str(E2E), "max_length": 48, "max_new_tokens": 16}}


@pytest.mark.parametrize(("option", "wrong", "said"), CASES)
def test_what_cannot_be(make_task, option, wrong, said):
    with pytest.raises(UserError) as caught:
        make_task(option, **FITS.get(option, {}) | wrong).fingerprint()
    assert said in str(caught.value)
