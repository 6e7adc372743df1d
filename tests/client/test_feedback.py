"""Error feedback: what is rounded away is sent later."""

import pytest
import torch

from fedmtl_client.feedback import ErrorFeedback
from fedmtl_core.errors import NonFiniteError
from fedmtl_core.wire.encodings import decode
from fedmtl_core.wire.layout import Component


def delta(*values):
    return Component.pack("shared", {"w": torch.tensor(values)})


def sent(encoded):
    (one,) = encoded
    return decode(one.layout.layout, one.layout.encoding, one.data).views()["w"]


def test_what_topk_leaves_out_comes_with_the_next_updates():
    feedback = ErrorFeedback("topk", density=0.25)  # one of four
    assert sent(feedback.encode([delta(4.0, 3.0, 2.0, 1.0)])).tolist() == [4.0, 0.0, 0.0, 0.0]
    feedback.counted()
    assert sent(feedback.encode([delta(0.0, 0.0, 0.0, 0.0)])).tolist() == [0.0, 3.0, 0.0, 0.0]
    feedback.counted()
    assert sent(feedback.encode([delta(0.0, 0.0, 0.0, 1.5)])).tolist() == [0.0, 0.0, 0.0, 2.5]


def test_an_update_that_did_not_count_leaves_nothing_owed():
    feedback = ErrorFeedback("topk", density=0.25)
    feedback.encode([delta(4.0, 3.0, 2.0, 1.0)])  # lost: that training is lost with it
    assert sent(feedback.encode([delta(0.0, 0.0, 0.0, 0.5)])).tolist() == [0.0, 0.0, 0.0, 0.5]


def test_another_run_owes_nothing():
    feedback = ErrorFeedback("topk", density=0.25)
    feedback.encode([delta(4.0, 3.0, 2.0, 1.0)])
    feedback.counted()
    feedback.forget()
    assert sent(feedback.encode([delta(0.0, 0.0, 0.0, 0.5)])).tolist() == [0.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(("encoding", "within"), [("float16", 3e-4), ("bfloat16", 3e-3), ("int8", 1e-2), ("topk", 8.0)])
def test_over_many_updates_nothing_is_lost(encoding, within):
    """The sum of what was sent stays within one update's rounding of the sum of what was trained."""
    generator = torch.Generator().manual_seed(0)
    feedback = ErrorFeedback(encoding)
    trained, arrived = torch.zeros(200), torch.zeros(200)
    for _ in range(300):
        values = torch.rand(200, generator=generator) * 0.1
        trained += values
        arrived += sent(feedback.encode([delta(*values.tolist())]))
        feedback.counted()
    assert trained.max() > 14
    assert (trained - arrived).abs().max() < within


def test_a_delta_that_is_not_finite_is_refused_and_changes_nothing():
    feedback = ErrorFeedback("int8")
    with pytest.raises(NonFiniteError, match="w has 1 of 2 values NaN or infinite"):
        feedback.encode([delta(1.0, float("nan"))])
    assert sent(feedback.encode([delta(1.0, 0.0)])).tolist() == [1.0, 0.0]
