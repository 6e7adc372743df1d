"""The generator that all threads share."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedmtl_core.model.modeling import TOY_MODEL, HeadSettings, MultiTaskModel, load_encoder
from fedmtl_core.randomness import drawing_from, seed_all
from tests.support import TinyEncoder, specs


@pytest.fixture
def eager_switches():
    """Threads that take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_that_make_models_at_once_make_the_same(eager_switches):
    def first_values(_):
        encoder, width = load_encoder(TOY_MODEL, weights=True, seed=3)
        return MultiTaskModel(
            encoder, specs("sst2", "stsb"), hidden_size=width, heads=HeadSettings(seed=3)
        ).state_dict()

    alone = first_values(0)
    with ThreadPoolExecutor(8) as pool:
        for one in pool.map(first_values, range(24)):
            assert all(torch.equal(value, one[name]) for name, value in alone.items())


def test_what_is_drawn_from_a_seed_is_not_disturbed_by_a_thread_that_seeds():
    drawing, seeded = threading.Event(), threading.Event()

    def disturb():
        drawing.wait()
        seed_all(7)
        seeded.set()

    thread = threading.Thread(target=disturb)
    thread.start()
    with drawing_from(3):
        drawing.set()
        assert not seeded.wait(0.05)
        drawn = torch.rand(4)
    thread.join()
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_the_generator_is_left_as_it_was():
    encoder = TinyEncoder()
    torch.manual_seed(5)
    with drawing_from(3):
        torch.rand(1)
    MultiTaskModel(encoder, specs("sst2"), hidden_size=4)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(5)))
