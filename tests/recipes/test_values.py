"""Checks of single values."""

import pytest

from hf_segkd.values import check_choice, check_positive


def test_a_choice_outside_the_set_is_refused_with_the_set_and_the_closest():
    """A typo would otherwise reach a dictionary as a KeyError, or be taken for the default."""
    check_choice("layer", "features", ("features", "logits"))
    with pytest.raises(ValueError) as error:
        check_choice("layer", "feature", ("features", "logits"))
    assert str(error.value) == "layer must be one of features, logits, got 'feature'. Did you mean 'features'?"


@pytest.mark.parametrize("value", [0, -1.5, float("nan")])
def test_a_number_that_is_not_positive_is_refused(value):
    """A temperature of 0 divides by zero at the first step, and NaN passes every `<= 0`."""
    check_positive("temperature", 0.5)
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        check_positive("temperature", value)
