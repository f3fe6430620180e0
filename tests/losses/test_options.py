"""Options of the losses that take one of a few words."""

from inspect import signature
from typing import get_type_hints

import pytest

from helpers.loss_cases import setup
from hf_segkd.losses import LOSSES, check_losses
from hf_segkd.values import words

CHOICES = [
    (name, option, words(get_type_hints(loss.__init__)[option]))
    for name, loss in LOSSES.items()
    for option in list(signature(loss).parameters)[1:]
    if words(get_type_hints(loss.__init__)[option])
]
IDS = [f"{name}.{option}" for name, option, _ in CHOICES]


@pytest.mark.parametrize("name, option, allowed", CHOICES, ids=IDS)
def test_another_word_is_refused_with_the_allowed_ones(name, option, allowed):
    """A loss built in Python passes no recipe check: the word would be taken for the last branch of an `if`."""
    with pytest.raises(ValueError, match=f"{option} must be .*, got 'other'") as error:
        LOSSES[name](setup(name), **{option: "other"})
    assert all(repr(word) in str(error.value) for word in allowed)


@pytest.mark.parametrize("name, option, allowed", CHOICES, ids=IDS)
def test_a_misspelled_word_in_a_recipe_is_answered_with_the_meant_one(name, option, allowed):
    """The check before any model is loaded must know the same words as the constructor."""
    with pytest.raises(ValueError, match=f"losses.{name}.{option} must be .*Did you mean '{allowed[-1]}'"):
        check_losses({name: {option: allowed[-1] + "x"}})


def test_a_text_option_of_a_loss_lists_its_words():
    """A plain `str` would let any word pass the check of a recipe, and show no choice in an editor."""
    plain = {
        f"{name}.{option}"
        for name, loss in LOSSES.items()
        for option, hint in get_type_hints(loss.__init__).items()
        if hint is str and option != "layer"
    }
    assert not plain
