import pytest

from keepfrac.errors import UserError
from keepfrac.tracking.tensorboard import FOLDER, TensorBoard, leaves

CONFIG = {"lr": 1e-4, "method": {"name": "l0", "families": ["heads"], "rank": None}, "seed": 0}


def test_leaves_are_the_hyperparameters():
    assert leaves(CONFIG) == {"lr": 1e-4, "method.name": "l0", "method.families": "['heads']", "seed": 0}


def test_curves_and_the_page_of_hyperparameters(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoard(tmp_path, CONFIG, 0)
    for step in range(3):
        logger.log_metrics({"kept/target": 1.0 - step / 4}, step)
    logger.summarise({"test/accuracy": 0.9})
    logger.finalize("success")
    found = accumulator.EventAccumulator(str(tmp_path / FOLDER))
    found.Reload()
    assert [event.value for event in found.Scalars("kept/target")] == [1.0, 0.75, 0.5]
    assert found.Scalars("final/test/accuracy")[0].value == pytest.approx(0.9)
    assert "_hparams_/session_start_info" in found.Tags()["tensors"] or found.summary_metadata


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    def absent(*args, **kwargs):
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr("pytorch_lightning.loggers.TensorBoardLogger.__init__", absent)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoard(tmp_path, CONFIG, 0)
