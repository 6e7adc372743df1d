"""Rules of a user's own, which make a component of all its updates: what they are given, and what they may answer."""

import weakref

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from examples.own_aggregation.median import Median
from fedmtl_core.config import AggregationConfig, AuxiliaryConfig, NormsConfig
from fedmtl_core.errors import AggregationError, ConfigError, LayoutMismatchError
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encoded_ranges import decode_range
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_core.wire.layout import DTYPES
from fedmtl_server.aggregation import rule_accumulator
from fedmtl_server.aggregation.blocks import BlockReader
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.rule_accumulator import RuleAccumulator
from fedmtl_server.aggregation.rules import RULES, BlockRule, make_rule
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.rule import RuleInsteadOfMean
from tests.server.aggregation.updates import BlocksInMemory, begun, changed, update_of

SETTINGS = AggregationConfig()


class Seeing(BlockRule):
    """Answers with the first update, and keeps what it was given."""

    def __init__(self, settings=SETTINGS):
        super().__init__(settings)
        self.calls = []

    def aggregate(self, values, weights, context):
        self.calls.append((values.clone(), weights.clone(), context))
        return values[0]


class Mean(BlockRule):
    """The weighted mean of all at once."""

    def aggregate(self, values, weights, context):
        return (weights @ values.double() / weights.sum()).to(values.dtype)


def update(client_id, values, num_examples=1, task="sst2", dtype=torch.float32, **fields):
    tensors = {"encoder.w": torch.as_tensor(values, dtype=dtype)}
    return update_of(client_id, task, num_examples, tensors, **fields)


def base(values, dtype=torch.float32):
    return {"shared": update("", values, dtype=dtype).components["shared"]}


def aggregated(rule, *updates, model=None, stages=(), blocks=None):
    """What a round of updates comes to: a component by scope."""
    model = model or base([0.0] * len(updates[0].components["shared"].runs()[0]))
    aggregation = begun(Pipeline([RuleInsteadOfMean(rule), *stages]), updates, model)
    for one in updates:
        assert aggregation.add(one, may_keep=True) == set()
    return aggregation.close(blocks or BlocksInMemory(updates))


def values_of(aggregate, scope="shared"):
    return aggregate.components[scope].views()["encoder.w"]


def drawn(clients, elements, seed=0):
    return torch.randn((clients, elements), generator=torch.Generator().manual_seed(seed))


def updates_of(matrix, **fields):
    return [update(f"c{row:02}", values, **fields) for row, values in enumerate(matrix)]


@pytest.fixture
def blocks_of(monkeypatch):
    """Sets how many elements of all updates together are in memory at a time."""
    return lambda elements: monkeypatch.setattr(rule_accumulator, "MAX_ELEMENTS", elements)


# The example.


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("elements_in_memory", [1, 8, 21, 10_000])
def test_the_example_is_the_coordinate_wise_median_whatever_the_size_of_a_block(clients, elements_in_memory, blocks_of):
    blocks_of(elements_in_memory)
    matrix = drawn(clients, 23)
    got = values_of(aggregated(Median(SETTINGS), *updates_of(matrix)))
    np.testing.assert_allclose(got.numpy(), np.median(matrix.numpy(), axis=0), rtol=1e-6, atol=1e-7)
    if clients % 2:
        assert torch.equal(got, matrix.median(dim=0).values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_median_of_an_odd_number_is_one_of_theirs_in_every_dtype(dtype, blocks_of):
    blocks_of(12)
    matrix = drawn(3, 11).to(dtype)
    got = values_of(aggregated(Median(SETTINGS), *updates_of(matrix, dtype=dtype), model=base([0.0] * 11, dtype)))
    assert torch.equal(got, matrix.median(dim=0).values)


def test_one_who_lies_moves_the_mean_at_will_and_the_median_no_further_than_the_honest_ones_lie_apart():
    honest = 1 + 0.01 * drawn(4, 50)
    lying = torch.full((1, 50), -1e6)
    updates = updates_of(torch.cat([honest, lying]))
    median, mean = (values_of(aggregated(rule(SETTINGS), *updates)) for rule in (Median, Mean))
    assert (median >= honest.min(dim=0).values).all()
    assert (median <= honest.max(dim=0).values).all()
    assert (mean < -1e5).all()


class EncodedBlocks:
    """Updates in the form in which they came."""

    def __init__(self, updates, encoding):
        self.encoded = {}
        for one in updates:
            for scope, component in one.components.items():
                data = encode(component, encoding)
                part = EncodedLayout(component.layout, encoding, len(data))
                self.encoded[one.client_id, scope] = (part, data)

    def read(self, client_id, scope, run, start, stop):
        part, data = self.encoded[client_id, scope]
        return decode_range(part, lambda first, end: data[first:end], run, start, stop)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_deltas_that_came_encoded_count_as_the_model_plus_what_they_decode_to(encoding, blocks_of):
    blocks_of(20)
    model, sent = base(drawn(1, 30, seed=7)[0]), updates_of(drawn(5, 30), kind="delta")
    blocks = EncodedBlocks(sent, encoding)
    decoded = [
        changed(one, components={scope: decode(part.layout, encoding, data)})
        for one in sent
        for scope in one.components
        for part, data in [blocks.encoded[one.client_id, scope]]
    ]
    got = values_of(aggregated(Median(SETTINGS), *decoded, model=model, blocks=blocks))
    counted = torch.stack([model["shared"].runs()[0] + one.components["shared"].runs()[0] for one in decoded])
    assert torch.equal(got, counted.median(dim=0).values)


# What a rule is given.


def test_a_rule_is_given_who_counts_in_the_cohorts_order_with_their_tasks_and_examples():
    rule = Seeing()
    updates = [update("b", [1.0, 2.0], 3, "qqp"), update("a", [3.0, 4.0], 5), update("c", [5.0, 6.0], 0)]
    aggregate = aggregated(rule, *updates, model=base([7.0, 8.0]))
    ((values, weights, context),) = rule.calls
    assert values.tolist() == [[1.0, 2.0], [3.0, 4.0]]  # one of no examples counts for nothing
    assert (weights.tolist(), weights.dtype) == ([3.0, 5.0], torch.float64)
    assert (context.round, context.scope) == (1, "shared")
    assert (context.client_ids, context.tasks) == (("b", "a"), ("qqp", "sst2"))
    assert context.base.tolist() == [7.0, 8.0]
    assert [(one.client_id, one.weight) for one in aggregate.contributions["shared"]] == [
        ("b", 3 / 8),
        ("a", 5 / 8),
        ("c", 0.0),
    ]


def test_an_auxiliary_tasks_weight_is_in_the_weights():
    rule = Seeing()
    auxiliary = AuxiliaryTasks({"mlm": AuxiliaryConfig(weight=0.5)})
    aggregated(rule, update("a", [1.0], 4), update("b", [2.0], 4, "mlm"), stages=[auxiliary])
    assert rule.calls[0][1].tolist() == [4.0, 2.0]


def test_values_are_what_a_mean_takes_clipped_and_discounted():
    model = base([1.0, 1.0])
    norms = NormScreening(NormsConfig(action="clip", bound=1.0))
    clipped = update("a", [5.0, 1.0])  # moves by 4, may by 1
    stale = update("b", [0.5, 0.0], kind="delta", discount=0.5)
    rule = Seeing()
    aggregated(rule, clipped, stale, model=model, stages=[norms])
    assert rule.calls[0][0].tolist() == [[2.0, 1.0], [1.25, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_update_alone_counts_as_it_does_in_a_mean_to_the_last_bit(dtype):
    model = base(drawn(1, 40, seed=3)[0], dtype)
    for one in (
        update("a", drawn(1, 40)[0], dtype=dtype),
        update("a", drawn(1, 40)[0], dtype=dtype, kind="delta", discount=0.3),
    ):
        for stages in ([], [NormScreening(NormsConfig(action="clip", bound=0.7))]):
            aggregation = begun(Pipeline(stages), [one], model)
            aggregation.add(one)
            expected = aggregation.close().components["shared"].buffer
            got = aggregated(Seeing(), one, model=model, stages=stages).components["shared"].buffer
            assert torch.equal(got, expected)


def test_a_rule_that_overwrites_what_it_is_given_changes_neither_the_model_nor_updates_nor_later_blocks(blocks_of):
    blocks_of(4)

    class Careless(Seeing):
        def aggregate(self, values, weights, context):
            answer = super().aggregate(values, weights, context).clone()
            for one in (values, weights, context.base):
                one.fill_(99.0)
            return answer

    rule, model, matrix = Careless(), base([5.0] * 6), drawn(2, 6)
    updates = updates_of(matrix)
    assert torch.equal(values_of(aggregated(rule, *updates, model=model)), matrix[0])
    assert torch.equal(torch.cat([values for values, _, _ in rule.calls], dim=1), matrix)
    assert {tuple(weights.tolist()) for _, weights, _ in rule.calls} == {(1.0, 1.0)}
    assert model["shared"].runs()[0].tolist() == [5.0] * 6
    assert torch.equal(updates[1].components["shared"].runs()[0], matrix[1])


def test_heads_are_made_by_the_rule_too_of_their_own_tasks_updates():
    updates = [
        update_of(client_id, task, 1, {"encoder.w": torch.zeros(1), f"heads.{task}.w": torch.tensor([value])})
        for client_id, task, value in (("a", "x", 1.0), ("b", "y", 9.0), ("c", "x", 2.0), ("d", "x", 4.0))
    ]
    model = {one.scope: one for update in updates for one in update.components.values()}
    aggregate = aggregated(Median(SETTINGS), *updates, model=model)
    heads = {scope: aggregate.components[scope].runs()[0].tolist() for scope in ("task:x", "task:y")}
    assert heads == {"task:x": [2.0], "task:y": [9.0]}


# Memory.


class CountingBlocks(BlocksInMemory):
    """Counts the elements of the blocks that it gave and that are still alive."""

    def __init__(self, updates):
        super().__init__(updates)
        self.alive = self.most = 0

    def read(self, *block):
        values = super().read(*block).clone()
        self.alive += len(values)
        self.most = max(self.most, self.alive)
        weakref.finalize(values, self._gone, len(values))
        return values

    def _gone(self, count):
        self.alive -= count


def test_memory_does_not_grow_with_the_number_of_clients(blocks_of):
    blocks_of(120)
    for clients in (2, 6, 40):
        updates, rule = updates_of(drawn(clients, 200)), Seeing()
        blocks = CountingBlocks(updates)
        aggregated(rule, *updates, blocks=blocks)
        shapes = {tuple(values.shape) for values, _, _ in rule.calls}
        assert max(rows * block for rows, block in shapes) <= 120
        assert {rows for rows, _ in shapes} == {clients}
        assert blocks.most <= 2 * 120 / clients  # one is copied while the next one is read
        assert blocks.alive == 0


def test_all_blocks_are_in_the_same_memory(blocks_of):
    blocks_of(20)
    places = set()

    class Place(Seeing):
        def aggregate(self, values, weights, context):
            places.add(values.data_ptr())
            return values[0]

    aggregated(Place(), *updates_of(drawn(4, 63)))
    assert len(places) == 1


def test_an_accumulator_keeps_nothing_of_an_update_and_takes_no_memory_before_it_is_closed():
    (one,) = updates_of(drawn(1, 10))
    component = one.components["shared"]
    accumulator = RuleAccumulator(component.layout, Seeing())
    assert accumulator.add(component, 1, may_keep=True) is False
    assert accumulator.runs == []
    assert RuleAccumulator.copies == 1


# Merging.


def closed(updates, *parts):
    """Accumulators of some of the updates each, merged."""
    accumulators = []
    for part in parts:
        accumulators.append(RuleAccumulator(updates[0].components["shared"].layout, Mean(SETTINGS)))
        for one in updates[part]:
            accumulators[-1].add(one.components["shared"], one.num_examples)
    first, *others = accumulators
    for other in others:
        first.merge(other)
    first.close(BlockReader("shared", updates, None, BlocksInMemory(updates)))
    return first.result().runs()[0]


def test_two_accumulators_merge_to_what_one_of_all_updates_is():
    matrix = drawn(5, 12)
    updates = [update(f"c{row}", values, num_examples=row + 1) for row, values in enumerate(matrix)]
    merged = closed(updates, slice(0, 2), slice(2, 5))
    assert torch.equal(merged, closed(updates, slice(0, 5)))
    weights = torch.arange(1.0, 6.0)
    assert torch.allclose(merged, weights @ matrix / weights.sum(), atol=1e-6)


def test_the_accumulator_that_is_merged_stays_as_it_is_and_has_the_same_layout():
    updates = updates_of(drawn(2, 3))
    layout = updates[0].components["shared"].layout
    first, second = RuleAccumulator(layout, Median(SETTINGS)), RuleAccumulator(layout, Median(SETTINGS))
    first.add(updates[0].components["shared"], 1)
    second.add(updates[1].components["shared"], 1)
    first.merge(second)
    second.close(BlockReader("shared", updates[1:], None, BlocksInMemory(updates)))
    assert torch.equal(second.result().runs()[0], updates[1].components["shared"].runs()[0])
    with pytest.raises(LayoutMismatchError):
        first.merge(RuleAccumulator(update("a", [1.0]).components["shared"].layout, Median(SETTINGS)))


# What a rule may answer.


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda values: values, r"float32 \(2, 3\)"),
        (lambda values: values[0, :2], r"float32 \(2,\)"),
        (lambda values: values[0].double(), r"float64 \(3,\)"),
        (lambda values: values[0].tolist(), "list"),
        (lambda values: None, "NoneType"),
    ],
)
def test_another_answer_than_one_value_for_each_element_is_an_error_of_the_setting(answer, got):
    class Wrong(BlockRule):
        def aggregate(self, values, weights, context):
            return answer(values)

    with pytest.raises(AggregationError, match=rf"^aggregation\.rule: Wrong for shared: .* float32 \(3,\), got {got}$"):
        aggregated(Wrong(SETTINGS), *updates_of(drawn(2, 3)))


def test_a_component_that_is_not_finite_stays_what_it_was():
    class Infinite(BlockRule):
        def aggregate(self, values, weights, context):
            return values[0] / 0

    aggregate = aggregated(Infinite(SETTINGS), *updates_of(drawn(2, 3)))
    assert not aggregate.components
    (discarded,) = aggregate.discarded
    assert discarded.scope == "shared"
    assert "its average isn't finite" in discarded.reason


OWN = """
from fedmtl_server.aggregation.rules import BlockRule

class Raising(BlockRule):
    def aggregate(self, values, weights, context):
        raise ValueError("not today")

class Incomplete(BlockRule):
    pass

class Other:
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "rules_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Missing", r"aggregation\.rule: the module 'rules_of_mine' .* has no 'Missing'; it has Raising, Incomplete"),
        ("Incomplete", r"aggregation\.rule: rules_of_mine:Incomplete lacks the methods aggregate of BlockRule"),
        ("Other", r"aggregation\.rule: expected a subclass of fedmtl_server\.aggregation\.rules\.BlockRule; .*Other"),
    ],
)
def test_a_class_that_is_no_rule_is_an_error_that_names_the_setting(name, error, own):
    with pytest.raises(ConfigError, match=error):
        make_rule(AggregationConfig(rule=f"rules_of_mine:{name}"))


def test_what_a_rule_raises_is_attributed_to_the_setting(own):
    rule = make_rule(AggregationConfig(rule="rules_of_mine:Raising"))
    with pytest.raises(ConfigError, match=r"aggregation\.rule: rules_of_mine:Raising raised ValueError: not today"):
        aggregated(rule, *updates_of(drawn(2, 3)))


def test_a_rule_reads_its_options_from_its_settings(tmp_path, monkeypatch):
    (tmp_path / "rule_with_options.py").write_text(
        "from fedmtl_server.aggregation.rules import BlockRule\n\n"
        "class Nth(BlockRule):\n"
        "    def aggregate(self, values, weights, context):\n"
        "        return values[self.settings.rule_options['row']]\n"
    )
    monkeypatch.chdir(tmp_path)
    matrix = drawn(3, 4)
    for row in range(2):
        rule = make_rule(AggregationConfig(rule="rule_with_options:Nth", rule_options={"row": row}))
        assert torch.equal(values_of(aggregated(rule, *updates_of(matrix))), matrix[row])
    with pytest.raises(ValidationError, match="`rule_options` are for a class of your own in `rule`, got `rule: mean`"):
        AggregationConfig(rule_options={"row": 1})


def test_the_mean_is_no_rule():
    assert make_rule(SETTINGS) is None
    assert RULES.key == "aggregation.rule"
