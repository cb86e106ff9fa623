import dataclasses

import pytest

from model_training.config import Recipe, Schedule

SCHEDULE = Schedule(steps=10, warmup_steps=2, batch_size=1, learning_rate=1e-3, weight_decay=0.0, validate_every=5)


@pytest.mark.parametrize("warmup", [0, 9])
def test_warm_up_ends_before_training(warmup: int) -> None:
    """A schedule may have no warm-up, or one of all steps but one."""
    assert dataclasses.replace(SCHEDULE, warmup_steps=warmup).warmup_steps == warmup


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("warmup_steps", 10, "warmup_steps is 10; expected 0 to 9"),
        ("warmup_steps", -1, "warmup_steps is -1"),
        ("steps", 0, "warmup_steps is 2"),
        ("batch_size", 0, "must be positive"),
        ("validate_every", 0, "must be positive"),
        ("learning_rate", 0.0, "must be positive"),
        ("learning_rate", -1e-3, "must be positive"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(field: str, value: float, message: str) -> None:
    """An invalid schedule is refused when it is created, before any data are read."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SCHEDULE, **{field: value})  # type: ignore[arg-type]


def test_a_schedule_cannot_be_changed() -> None:
    """A schedule is frozen, so the record of a run stays true."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEDULE.steps = 20  # type: ignore[misc]


def test_with_loss_changes_the_loss_alone(recipe: Recipe) -> None:
    """Binning, weight and first step of mL1-ACE change; everything else is the recipe's."""
    changed = recipe.with_loss("soft", 0.3, after=2)

    assert (changed.binning, changed.ace_weight, changed.ace_after) == ("soft", 0.3, 2)
    assert recipe.with_loss("soft", 0.3).ace_after == 0
    assert changed.with_loss(recipe.binning, recipe.ace_weight, after=recipe.ace_after) == recipe


def test_without_a_fold_the_others_are_trained_on(recipe: Recipe) -> None:
    """The held-out fold becomes the validation split, and the test set is not used."""
    held_out = recipe.without("fold2", ["fold1", "fold2", "fold3", "test"])

    assert (held_out.train_splits, held_out.validation_split) == (("fold1", "fold3"), "fold2")
