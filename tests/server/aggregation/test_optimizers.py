"""Server optimisers, against the papers' formulas computed on their own in float64, and laws that hold for all."""

from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.config import Config, ServerOptimizerConfig
from fedmtl_core.errors import AggregationError, ConfigError, LayoutMismatchError, NonFiniteError
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.optimizers import ServerOptimizer, make_optimizer
from fedmtl_server.aggregation.stages import server_optimizer
from fedmtl_server.aggregation.stages.server_optimizer import OptimizerSteps
from fedmtl_server.aggregation.values import StageState
from fedmtl_server.server import Server
from tests.support import OddEncoder, tiny_model

NAMES = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")
CURVATURE, MINIMUM = np.array([1.0, 10.0, 0.1]), np.array([1.0, -2.0, 0.5])
START = np.array([3.0, 3.0, -4.0])


def component(values, scope="shared", dtype=torch.float32):
    return Component.pack(scope, {"encoder.w": torch.tensor(values, dtype=dtype)})


def values_of(one):
    return one.views()["encoder.w"].double().numpy()


def state_of(name, *components, **given):
    optimizer = make_optimizer(ServerOptimizerConfig(name=name, **given))
    assert optimizer is not None
    return OptimizerSteps(optimizer, [one.layout for one in components])


def stepped(state, base, delta):
    """The component that a step moves `base` to, when the average is `base` plus a delta."""
    mean = component(values_of(base) + np.asarray(delta), base.scope)
    state.release(base, mean)
    return mean


def memory_of(state):
    return {scope: one.buffer.view(torch.float32).tolist() for scope, one in state.state().components.items()}


def downhill(x):
    """What clients come to on a quadratic: a step of gradient descent of length 0.05."""
    return -0.05 * CURVATURE * (x - MINIMUM)


def iterates(name, steps, eta, beta_1, beta_2, tau):
    """The papers' update rules, in float64 and written out once more."""
    x, m, v = START.copy(), np.zeros(3), np.full(3, tau**2)
    for _ in range(steps):
        delta = downhill(x)
        if name == "fedavgm":
            m = beta_1 * m + delta
            x = x + eta * m
        else:
            m = beta_1 * m + (1 - beta_1) * delta
            if name == "fedadagrad":
                v = v + delta**2
            elif name == "fedadam":
                v = beta_2 * v + (1 - beta_2) * delta**2
            else:
                v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
            x = x + eta * m / (np.sqrt(v) + tau)
        yield x


@pytest.mark.parametrize("name", NAMES)
def test_on_a_quadratic_each_comes_step_by_step_to_where_its_paper_says(name):
    given = {"learning_rate": 0.3, "beta_1": 0.6, "beta_2": 0.9, "tau": 0.05}
    x = component(START)
    state = state_of(name, x, **given)
    for expected in iterates(name, 8, *given.values()):
        x = stepped(state, x, downhill(values_of(x)))
        assert values_of(x) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_first_steps_by_hand():
    """m = (1 - 0.5) * 3 = 1.5 and 0.5 * 1.5 + 0.5 * 1 = 1.25; v = 4 + 9 = 13 is no square, so Adam's with β₂ = 0:
    v = 9 and 1, √v + τ = 5 and 3; moves of 2 * 1.5 / 5 and 2 * 1.25 / 3."""
    x = component([10.0])
    state = state_of("fedadam", x, learning_rate=2, beta_1=0.5, beta_2=0, tau=2)
    assert memory_of(state) == {"shared/momentum": [0.0], "shared/second_moment": [4.0]}  # v₀ = τ²
    x = stepped(state, x, [3.0])
    assert values_of(x).tolist() == pytest.approx([10.6])
    assert memory_of(state) == {"shared/momentum": [1.5], "shared/second_moment": [9.0]}
    x = stepped(state, x, [1.0])
    assert values_of(x).tolist() == pytest.approx([10.6 + 2.5 / 3])


def test_momentum_by_hand():
    """m = 4, then 0.5 * 4 + 2 = 4, then 0.5 * 4 - 1 = 1; no 1 - β before Δ."""
    x = component([0.0])
    state = state_of("fedavgm", x, learning_rate=1, beta_1=0.5)
    reached = []
    for delta in (4.0, 2.0, -1.0):
        x = stepped(state, x, [delta])
        reached.append(values_of(x).item())
    assert reached == [4.0, 8.0, 9.0]


def test_the_first_step_of_yogi_moves_v_towards_the_square_by_hand():
    """v = 1 - 0.5 * 4 * sign(1 - 4) = 3; from there with Δ = 1: v = 3 - 0.5 * 1 * sign(3 - 1) = 2.5."""
    x = component([0.0])
    state = state_of("fedyogi", x, beta_2=0.5, tau=1)
    x = stepped(state, x, [2.0])
    assert memory_of(state)["shared/second_moment"] == [3.0]
    stepped(state, x, [1.0])
    assert memory_of(state)["shared/second_moment"] == [2.5]


def test_defaults_are_the_papers():
    def made(name):
        settings = make_optimizer(ServerOptimizerConfig(name=name)).settings
        return settings.learning_rate, settings.beta_1, settings.beta_2, settings.tau

    assert made("fedavgm") == (1.0, 0.9, 0.99, 1e-3)
    assert made("fedadagrad") == (0.01, 0.0, 0.99, 1e-3)
    assert made("fedadam") == made("fedyogi") == (0.01, 0.9, 0.99, 1e-3)
    assert make_optimizer(ServerOptimizerConfig()) is None  # the average is the model


def test_a_default_is_the_optimisers_and_not_the_configurations():
    """A stored run is compared with what its configuration says, where the value still isn't given."""
    section = ServerOptimizerConfig(name="fedadam", beta_1=0.5)
    assert (section.resolved().learning_rate, section.resolved().beta_1) == (0.01, 0.5)
    assert section.model_dump() == {
        "name": "fedadam",
        "learning_rate": None,
        "beta_1": 0.5,
        "beta_2": 0.99,
        "tau": 1e-3,
    }


finite = st.floats(-1e3, 1e3, width=32)
vectors = st.lists(finite, min_size=3, max_size=3)


@settings(max_examples=25)
@given(vectors, vectors)
def test_momentum_0_at_a_rate_of_1_is_fedavg(base, mean):
    x, average = component(base), component(mean)
    state_of("fedavgm", x, learning_rate=1, beta_1=0).release(x, average)
    assert values_of(average) == pytest.approx(np.array(mean), rel=1e-6, abs=2e-4)  # an ulp of the larger of the two


@settings(max_examples=25)
@given(st.sampled_from(NAMES), vectors)
def test_without_delta_and_momentum_nothing_moves(name, base):
    x = component(base)
    assert values_of(stepped(state_of(name, x), x, np.zeros(3))).tolist() == values_of(x).tolist()


@settings(max_examples=25)
@given(st.sampled_from(NAMES), vectors, vectors)
def test_a_component_moves_as_if_it_were_alone(name, one, other):
    """And what nobody reported for keeps its numbers and what is remembered of them."""
    x, head = component(START), component(START, "task:sst2")
    alone, together = state_of(name, x), state_of(name, x, head)
    before = memory_of(together)
    first = stepped(together, x, one)
    assert {k: v for k, v in memory_of(together).items() if k.startswith("task:sst2/")} == {
        k: v for k, v in before.items() if k.startswith("task:sst2/")
    }
    stepped(together, head, other)
    assert values_of(first).tobytes() == values_of(stepped(alone, x, one)).tobytes()
    assert {k: v for k, v in memory_of(together).items() if k.startswith("shared/")} == memory_of(alone)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_make_no_difference(name, monkeypatch):
    """Nor do dtypes and padding: state and component are cut at different bytes, and at the same elements."""
    encoder = {name: p.detach() for name, p in OddEncoder().named_parameters() if name != "large"}
    base = Component.pack("shared", encoder)
    mean = Component.pack("shared", {name: value + 0.25 for name, value in encoder.items()})
    results = []
    for block in (3, 1000):
        monkeypatch.setattr(server_optimizer, "_BLOCK", block)
        state, result = state_of(name, base), mean.clone()
        state.release(base, result)
        state.release(base, again := mean.clone())
        results.append([result.views(), again.views(), memory_of(state)])
    (one, two, memory), (other, other_two, other_memory) = results
    assert memory == other_memory
    for key, value in one.items():
        assert torch.equal(value, other[key])
        assert torch.equal(two[key], other_two[key])
    at_once = component([1.0])
    state = state_of(name, at_once)
    moved = values_of(stepped(state, at_once, [0.25])).item() - 1
    assert (one["large" if "large" in one else "scale"] - encoder["scale"]).item() == pytest.approx(moved, rel=1e-4)
    assert all(one[key].dtype == value.dtype for key, value in encoder.items())


def test_what_is_remembered_is_float32_under_the_tensors_own_names():
    base = Component.pack("shared", dict(OddEncoder().named_parameters()))
    layout = state_of("fedavgm", base).state_layouts([base.layout], {})[0]
    assert layout.scope == "shared/momentum"
    assert [spec.name for spec in layout.tensors] == [f"momentum/{spec.name}" for spec in base.layout.tensors]
    assert {spec.dtype for spec in layout.tensors} == {torch.float32}
    assert layout.num_bytes == 4 * base.layout.num_elements


@pytest.mark.parametrize("name", NAMES)
def test_a_step_out_of_range_is_refused_and_leaves_what_is_remembered(name):
    x = component([3e38, 0.0])
    state = state_of(name, x, learning_rate=1e30)
    stepped(state, x, [0.0, 0.0])
    before = memory_of(state)
    average = component([-3e38, 1.0])
    with pytest.raises(NonFiniteError):
        state.release(x, average)
    assert memory_of(state) == before
    assert values_of(stepped(state, x, [0.0, 0.0])).tolist() == values_of(x).tolist()


def test_the_model_is_left_as_it_is_until_the_commit():
    x = component(START)
    stepped(state_of("fedadam", x), x, [1.0, 2.0, 3.0])
    assert values_of(x).tolist() == START.tolist()


def test_what_was_remembered_is_taken_up_bit_for_bit_and_only_of_the_same_layout():
    x = component(START)
    running = state_of("fedadam", x)
    for _ in range(3):
        x = stepped(running, x, downhill(values_of(x)))
    fresh, layouts = state_of("fedadam", x), [x.layout]
    remembered = {scope: one.clone() for scope, one in running.state().components.items()}
    fresh.restore(StageState(remembered), layouts)
    assert values_of(stepped(running, x, [1, 2, 3])).tobytes() == values_of(stepped(fresh, x, [1, 2, 3])).tobytes()
    with pytest.raises(LayoutMismatchError):
        fresh.restore(state_of("fedadam", component([1.0])).state(), layouts)


def test_buffers_are_used_again():
    x = component(START)
    state, seen = state_of("fedavgm", x), set()
    for _ in range(6):
        x = stepped(state, x, [1.0, 1.0, 1.0])
        seen.add(state.state().components["shared/momentum"].buffer.data_ptr())
    assert len(seen) == 2


# A class of the user's own.


class Clipped(ServerOptimizer):
    """Goes at most so far."""

    slots = MappingProxyType({"longest": 0.0})

    def step(self, delta, state):
        rate = self.settings.learning_rate
        return delta.clamp(-rate, rate), {"longest": torch.maximum(state["longest"], delta.abs())}


class Halfway(Clipped):
    slots = MappingProxyType({"longest": Fraction(1, 2)})


class WithoutState(Clipped):
    def step(self, delta, state):
        return delta, {}


class Short(Clipped):
    def step(self, delta, state):
        return delta[1:], state


class Raises(Clipped):
    def step(self, delta, state):
        return delta, state["no such"]


class NeedsMore(Clipped):
    def __init__(self, given, more):
        pass


class Misnamed(Clipped):
    slots = MappingProxyType({"a/b": 0.0})


class Worded(Clipped):
    slots = MappingProxyType({"longest": "long"})


class Fractional(Clipped):
    slots = MappingProxyType({"longest": Fraction(1, 2)})


class Unfinished(ServerOptimizer):
    slots = MappingProxyType({})


def test_a_class_of_ones_own_moves_the_model():
    x = component(START)
    state = state_of(f"{__name__}:Clipped", x, learning_rate=0.5)
    assert values_of(stepped(state, x, [0.25, -3.0, 1.0])).tolist() == [3.25, 2.5, -3.5]
    assert memory_of(state) == {"shared/longest": [0.25, 3.0, 1.0]}


def test_what_a_class_of_ones_own_remembers_may_begin_with_any_number():
    x = component(START)
    state = state_of(f"{__name__}:Halfway", x)
    assert memory_of(state) == {"shared/longest": [0.5, 0.5, 0.5]}


def test_a_class_of_ones_own_may_begin_with_any_kind_of_number():
    assert memory_of(state_of(f"{__name__}:Fractional", component(START))) == {"shared/longest": [0.5, 0.5, 0.5]}


def test_a_class_of_ones_own_finds_every_setting_in_its_settings():
    made = make_optimizer(ServerOptimizerConfig(name=f"{__name__}:Clipped", tau=0.5))
    given = made.settings
    assert (given.learning_rate, given.beta_1, given.beta_2, given.tau) == (0.01, 0.9, 0.99, 0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Name", "there is no module 'no_such_module'"),
        (f"{__name__}:Nothing", f"the module '{__name__}' .* has no 'Nothing'; it has Clipped, "),
        (f"{__name__}:NeedsMore", "NeedsMore raised TypeError: .*'more'"),
        (f"{__name__}:Misnamed", "expected slots that are named like variables, got 'a/b'"),
        (f"{__name__}:Worded", "Worded raised ValueError: could not convert string to float"),
        (f"{__name__}:Unfinished", "Unfinished lacks the methods step of ServerOptimizer"),
        (
            "fedmtl_core.errors:ConfigError",
            "expected a subclass of fedmtl_server.aggregation.optimizers.ServerOptimizer",
        ),
    ],
)
def test_a_class_that_cannot_be_had_is_named_with_its_key(name, message):
    message = f"server_optimizer.name: .*{message}"
    with pytest.raises(ConfigError, match=message):
        make_optimizer(ServerOptimizerConfig(name=name))
    config = Config.model_validate({"tasks": {"sst2": {}}, "server_optimizer": {"name": name}})
    with pytest.raises(ConfigError, match=message):
        Server(config, None, tiny_model("sst2"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WithoutState", "the step returned no state 'longest'"),
        ("Short", r"the step: expected float32 \[3\], got torch.float32 \[2\]"),
        ("Raises", "server_optimizer.name: .*:Raises raised KeyError: 'no such'"),
    ],
)
def test_a_class_that_does_something_else_is_told_what_was_expected(name, message):
    x = component(START)
    with pytest.raises((AggregationError, ConfigError), match=message):
        stepped(state_of(f"{__name__}:{name}", x), x, [1.0, 1.0, 1.0])
