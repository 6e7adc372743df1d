"""Updates of plain numbers, and what a round of them comes to."""

import dataclasses

from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator, named_tensors
from fedmtl_server.aggregation.order import CohortOrder
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.values import Aggregate

_OF_THE_UPDATE = {"task", "num_examples", "extras", "claimed_examples", "received", "trained"}


def update_of(client_id, task, num_examples, parameters, kind="parameters", scopes=None, **fields):
    """An update of tensors by name."""
    made = ClientUpdate.from_parameters(client_id, task, num_examples, parameters, kind, scopes)
    return changed(made.screened(1), **fields)


def changed(update, **fields):
    """The same update with other fields, of its own or of what screening said."""
    own = {key: fields.pop(key) for key in fields.keys() & _OF_THE_UPDATE}
    return dataclasses.replace(update, update=dataclasses.replace(update.update, **own), **fields)


class BlocksInMemory:
    """Updates with their tensors, to be read again."""

    def __init__(self, updates):
        self._components = {one.client_id: one.components for one in updates}

    def read(self, client_id, scope, run, start, stop):
        return self._components[client_id][scope].runs()[run][start:stop]


def evaluation(**metrics):
    """Metrics that were taken on one example."""
    return Evaluation(metrics, 1)


def begun(pipeline, updates, base=None, round_=1):
    """A round in which updates count; none of them is added yet."""
    aggregation = pipeline.begin(base or {}, round_)
    for one in updates:
        pipeline.count(one.update, one.components)
    pipeline.complete()
    return aggregation


def combined(aggregation):
    """What a round comes to before any stage releases it."""
    components, contributions = aggregation.combine()
    return Aggregate(components, contributions)


def round_of(pipeline, *updates, base=None, round_=1, may_keep=False):
    """What a round of updates comes to before any stage releases it."""
    aggregation = begun(pipeline, updates, base, round_)
    for one in updates:
        aggregation.add(one, may_keep=may_keep)
    return combined(aggregation)


def averaged(*updates, base=None, aggregator=None, round_=1):
    """The tensors that a round of updates comes to, whatever order they are given in."""
    pipeline = (aggregator or MTLAggregator()).pipeline
    updates = sorted(updates, key=lambda update: update.client_id)
    CohortOrder([update.client_id for update in updates])
    return named_tensors(round_of(pipeline, *updates, base=base, round_=round_).components)


PLAIN = Pipeline()
"""No stage: the average by examples."""
