"""What people type, and the one line that they are told."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from keepfrac.errors import UserError
from keepfrac.run import command_line
from keepfrac.run.command_line import arranged, one_line, unknown_key


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["method=norm", "-m", "keep_frac=0.3"], ["-m", "method=norm", "keep_frac=0.3"]),
        (["method=norm", "--cfg", "job", "lr=1"], ["--cfg", "job", "method=norm", "lr=1"]),
        (["keep_frac=0.3", "~lr", "--multirun"], ["--multirun", "keep_frac=0.3", "~lr"]),
        (["logger=null", "experiment=null"], ["logger=none", "experiment=null"]),
    ],
)
def test_options_may_stand_anywhere(typed, meant):
    assert arranged(typed) == meant


def test_a_group_has_one_option():
    with pytest.raises(UserError, match=r"-m method=norm,rand$"):
        arranged(["method=[norm,rand]"])
    with pytest.raises(UserError, match=r"^method=null: must be one of .*nosp"):
        arranged(["method=null"])


@pytest.mark.parametrize(
    ("key", "near"),
    [("learning_rate", "lr"), ("seeed", "seed"), ("rank", "method.rank"), ("task.max_lenght", "task.max_length"),
     ("methd", "method"), ("model_name_or_path", "model.name")],
)  # fmt: skip
def test_an_unknown_key_suggests_the_nearest(key, near):
    assert f"did you mean {near}" in unknown_key(key)


@pytest.mark.parametrize(
    ("typed", "near"),
    [("method=lora method.rnak", "method.rank"), ("method=norm method.shar", "method.share"),
     ("method=lora,norm method.rnak", "method."), ("method=nope method.rnak", "method.")],
)  # fmt: skip
def test_the_keys_of_the_option_that_is_chosen_are_nearest(typed, near):
    *chosen, key = typed.split()
    assert f"did you mean {near}" in unknown_key(key, chosen)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Could not find 'method/nrom'\nAvailable options in 'method':\n\tnorm\n\tnosp\n\trand\nConfig search path:",
            "method=nrom: no such option; did you mean norm? There are 3: norm, nosp, rand",
        ),
        (
            "KeyError raised while resolving interpolation: \"Environment variable 'NOPE' not found\"\n full_key: name",
            "name: the environment variable NOPE is not set",
        ),
    ],
)
def test_errors_of_the_configuration_are_one_line(said, told):
    assert one_line(Exception(said)) == told


@pytest.mark.parametrize("word", ["name=naïve", "lr=[1", "task.text=a:b c}"])
def test_what_cannot_be_read_is_shown_with_the_quotes_that_help(word):
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([word])
    said = one_line(caught.value)
    assert said.startswith(word) and "quotes" in said and "http" not in said and "\n" not in said


def test_the_version_is_that_of_this_code(root):
    assert f'version = "{command_line.version()}"' in (root / "pyproject.toml").read_text()


def test_each_method_has_a_line(root):
    lines = command_line.described("method").splitlines()
    assert len(lines) == len(list((root / "conf/method").glob("*.yaml")))
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["lora"] == "Low-rank updates of frozen linears (LoRA); half a percent of BERT-base is trained"
    assert said["late"].endswith("by the norm of their output gradient")
