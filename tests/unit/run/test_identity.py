"""The identity of a cell: what changes it, what does not, and the checks before anything starts."""

import copy

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.errors import UserError
from keepfrac.run import identity


@pytest.fixture(scope="module")
def settings(root):
    identity.register()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return identity.plain(compose("config", overrides=["method=norm", "model=bert_tiny"]))


def changed(settings: dict, key: str, value) -> dict:
    settings = copy.deepcopy(settings)
    *parents, last = key.split(".")
    node = settings
    for parent in parents:
        node = node[parent]
    node[last] = value
    return settings


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 1e-4), ("seed", 1), ("epochs", 9), ("method.keep_frac", 0.5), ("task.rows", 100), ("model.dropout", 0.2),
     ("hardware.precision", "32-true"), ("batch_size", 64)],
)  # fmt: skip
def test_what_changes_the_result_changes_the_identity(settings, key, value):
    fixed = changed(settings, "hardware.precision", "bf16-mixed")
    assert identity.identify(fixed) != identity.identify(changed(fixed, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "other"), ("logger.name", "csv"), ("checkpoint_every", 7), ("keep_frac", 0.9), ("eval_batch_size", 8),
     ("hardware.num_workers", 2), ("hardware.threads", 1), ("rerun", "changed")],
)  # fmt: skip
def test_names_and_places_do_not(settings, key, value):
    assert identity.identify(settings) == identity.identify(changed(settings, key, value))


def test_the_dense_baseline_is_one_cell_of_a_sweep_over_keep_frac(root):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cells = {identity.cell(compose("config", overrides=[f"keep_frac={k}"])).identity for k in (0.1, 0.3, 0.5)}
    assert len(cells) == 1


def test_a_folder_counts_by_its_content_not_by_its_name(settings, tmp_path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(content)
    one, same, other = (identity.identify(changed(settings, "model.name", str(tmp_path / name))) for name in "abc")
    assert one == same != other


def test_batch_size_must_divide_by_accumulate(settings):
    with pytest.raises(UserError, match="multiple of accumulate=3"):
        identity.check(changed(settings, "accumulate", 3))


def test_the_folders_name_is_safe_and_short(settings):
    weird = changed(settings, "model.name", "a/b c:" + "x" * 300)
    weird["model"]["config"] = {"model_type": "bert"}
    name = identity.cell(weird).folder.name
    assert len(name) < 200 and not set(name) & set("/ :")


def test_a_float_of_a_range_has_a_readable_name(settings):
    assert "_k0.3_" in identity.cell(changed(settings, "method.keep_frac", 0.30000000000000004)).folder.name


def test_a_missing_mandatory_value_says_what_to_type(root):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=["model=from_run"])
    with pytest.raises(UserError, match=r"model\.run: a value is needed"):
        identity.plain(cfg)


def test_from_run_of_an_unfinished_run_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match="not the folder of a finished run"):
        identity.identify(changed(settings, "model.run", str(tmp_path)))


def test_what_delivers_no_updates_cannot_go_out_to_peft(root):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):

        def check(*overrides):
            identity.check(identity.plain(compose("config", overrides=["export=peft", *overrides])))

        with pytest.raises(UserError, match=r"export=peft: method=peft_lora delivers no updates.*method=lora"):
            check("method=peft_lora", "model=bert_tiny")
        with pytest.raises(UserError, match=r"needs method\.merge=keep"):
            check("method=lora", "model=bert_tiny")
        check("method=lora", "method.merge=keep", "model=bert_tiny")
        check("method=nosp", "model=from_run", "model.run=somewhere")
