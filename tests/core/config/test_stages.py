"""What stages of the aggregation require of a run, and what takes it from them."""

import pytest

from fedmtl_core.config.stages import CONTROL_VARIATES, NORMS, SHARING, STAGES, Breach, Property, require_compatible

ASYNC = Breach(Property.SYNCHRONOUS, "`rounds.mode: sync`", "'async'")


def test_a_stage_without_what_it_requires_is_refused_with_the_setting_that_is_in_its_way_and_the_reason():
    with pytest.raises(ValueError, match=r"^training\.control_variates: needs `rounds\.mode: sync`, got 'async': all"):
        require_compatible([CONTROL_VARIATES, SHARING], [ASYNC])
    with pytest.raises(ValueError, match=r"^sharing\.adaptive: needs `rounds\.mode: sync`, got 'async': layers"):
        require_compatible([SHARING], [ASYNC])


def test_a_stage_goes_with_a_breach_of_what_it_does_not_require():
    require_compatible([NORMS], [ASYNC])
    require_compatible([SHARING], [Breach(Property.WHOLE_UPDATES, "another")])


def test_a_breach_by_a_stage_is_one_that_the_stage_is_said_to_make():
    Breach(Property.WHOLE_UPDATES, "another", stage=NORMS)
    with pytest.raises(ValueError, match="norms isn't said to break SYNCHRONOUS"):
        Breach(Property.SYNCHRONOUS, "another", stage=NORMS)


def test_stages_have_names_of_their_own_and_require_nothing_that_they_break():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert not any(stage.requires.keys() & stage.breaks for stage in STAGES)
