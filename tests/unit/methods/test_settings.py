"""Settings of methods that can be; those that cannot are in tests/contract/bad_inputs.py."""

import pytest

from tests.contract.bad_inputs import GAINS, RANKS
from tests.contract.settings_of import made


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("magnitude", {"cost": "latency", "settled_at": 1}),
        ("l0", {}),
        ("l0", RANKS | {"controller": GAINS, "rank": 8, "l2": 0.05, "whiten": 4}),
        ("l0", {"families": ["neurons"], "scope": "layer", "l2": 0}),
        ("taylor", {"iterations": 1, "begin": 0.9}),
        ("taylor", {"keep_frac": 1, "heads": 6, "even": "heads"}),
        ("lora_sparse", {"schedule": "one_shot", "ramp_from": 0.5}),
        ("dsee_structured", {"score": "w_delta", "settled_at": 0}),
        ("distill_prune", {"structure": "2:4", "keep_frac": 1}),
    ],
)
def test_what_can_be_passes(method, changed):
    assert made(method, **changed).plain().items() >= changed.items()
