"""The rules of a run's rounds."""

import pytest

from fedmtl_core.config import Config
from fedmtl_server.rounds.rules import RoundRules
from fedmtl_server.rounds.task_selection import HighestLoss
from tests.server.rounds.driven import round_rules


def test_a_stale_update_counts_by_one_plus_its_staleness_to_the_minus_a():
    def discounts(exponent, *staleness):
        rules = round_rules(num_rounds=1, min_clients={}, mode="async", staleness_exponent=exponent)
        return [rules.discount(one) for one in staleness]

    assert discounts(0.5, 0, 3, 8) == pytest.approx([1, 1 / 2, 1 / 3])
    assert discounts(1.0, 0, 1, 3) == [1, 0.5, 0.25]
    assert discounts(0.0, 9) == [1]


def test_the_rules_of_a_configuration_are_its_rounds_section_and_what_other_sections_say_of_rounds():
    config = Config.model_validate(
        {
            "training": {"num_rounds": 7, "seed": 3},
            "tasks": {
                "sst2": {"min_clients": 2, "deadline_s": 40.0, "max_examples": 500},
                "texts": {"type": "masked_lm", "min_clients": 0, "auxiliary": {"weight": 0.5}},
            },
            "clients": [{"client_id": name, "task": "sst2"} for name in "ab"],
            "rounds": {"deadline_s": 90.0, "mode": "async", "await_clients_s": 5.0},
        }
    )
    selection = HighestLoss()
    rules = RoundRules.from_config(config, selection)
    assert rules == RoundRules(
        num_rounds=7,
        min_clients={"sst2": 2, "texts": 0},
        auxiliary=frozenset({"texts"}),
        rounds=config.rounds,
        task_deadline_s={"sst2": 40.0},
        selection=selection,
        seed=3,
        max_examples={"sst2": 500},
        expected=frozenset("ab"),
    )
    assert rules.is_asynchronous
    assert [rules.deadline_length_s(task) for task in config.tasks] == [40.0, 90.0]
