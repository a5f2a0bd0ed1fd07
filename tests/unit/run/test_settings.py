"""The settings of a run: typed, checked, and the same mapping again."""

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.settings import RunSettings, check, plain
from tests.unit.run.test_identity import changed


@pytest.fixture(scope="module")
def config(root) -> dict:
    identity.register()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return plain(compose("config", overrides=["method=nosp", "model=bert_tiny", "accumulate=2"]))


def test_they_are_attributes_and_come_out_as_they_went_in(config):
    settings = check(config)
    assert settings.hardware.devices == 1 and settings.model.attention == "sdpa" and settings.rows == 16
    assert settings.plain() == config


def test_the_keys_are_those_of_the_configuration(config):
    assert set(RunSettings.names()) == set(config)


def test_a_run_of_an_earlier_version_has_what_was_in_effect_then(config):
    earlier = {key: value for key, value in config.items() if key not in ("ema", "backward", "distill")}
    settings = RunSettings.of(earlier)
    assert settings.ema is None and settings.backward == {"name": "none"}
    assert identity.identify(settings.plain()) == identity.identify(earlier)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", ".."), ("name", "records"), ("name", "naïve"), ("seed", 2**64), ("weight_decay", float("inf")),
     ("hardware.accelerator", "foo"), ("hardware.strategy", "foo"), ("hardware.threads", 0), ("method", None),
     ("model.run", 3), ("keep_frac", 0), ("keep_frac", 1.5), ("keep_frac", "abc"), ("keep_frac", True), ("lr", -1),
     ("lr", float("nan")), ("warmup", 1.0), ("batch_size", 0), ("batch_size", 2.5), ("name", "a/b"), ("steps", 0),
     ("seed", -1), ("model.attention", "flash"), ("hardware.precision", "16"), ("method.keep_frac", 0)],
)  # fmt: skip
def test_what_no_run_can_have_is_one_sentence_with_key_value_and_what_is_allowed(config, key, value):
    with pytest.raises(UserError, match=rf"^{key}=.*: (must be|is read as a number)") as caught:
        identity.check(changed(config, key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["foo", "model.foo", "hardware.foo"])
def test_a_key_without_effect_is_refused(config, key):
    with pytest.raises(UserError, match=rf"^{key}: no such key"):
        check(changed(config, key, 1))
