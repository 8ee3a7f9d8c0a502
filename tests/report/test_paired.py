import numpy as np
import pytest

from jointrd_jax.report import paired


def draws(seed, accuracy, size=400):
    return (np.random.default_rng(seed).random(size) < accuracy).astype(np.int8)


def test_the_same_runs_cannot_be_told_apart():
    runs = {(seed, ''): draws(seed, 0.9) for seed in range(3)}
    found = paired.difference(runs, runs)
    assert found == (0, 0, 0, 3, 400) and not found.is_told_apart
    assert 'cannot be told apart' in str(found)


def test_a_clear_difference_is_told_apart():
    better, worse = ({(seed, ''): draws(seed + shift, p) for seed in range(3)} for shift, p in ((0, 0.95), (9, 0.7)))
    found = paired.difference(better, worse)
    assert found.is_told_apart and found.low < found.mean < found.high
    assert found.mean == pytest.approx(100 * np.mean([better[key].mean() - worse[key].mean() for key in better]))
    reverse = paired.difference(worse, better)
    assert reverse.mean == pytest.approx(-found.mean) and reverse.high < 0


def test_the_interval_is_that_of_the_mean_where_there_is_one_seed():
    """For one seed the bootstrap is over the images: close to the normal interval of a mean of paired differences."""
    ours, theirs = draws(1, 0.9, 2000), draws(2, 0.85, 2000)
    found = paired.difference({(5, ''): ours}, {(5, ''): theirs})
    d = ours.astype(float) - theirs
    half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
    assert found.low == pytest.approx(100 * (d.mean() - half), abs=0.3)
    assert found.high == pytest.approx(100 * (d.mean() + half), abs=0.3)


def test_seeds_that_differ_widen_the_interval():
    images = {(seed, ''): draws(0, 0.9) for seed in range(3)}
    steady = {(seed, ''): draws(1, 0.8) for seed in range(3)}
    varied = {(seed, ''): draws(1, 0.95 - 0.15 * seed) for seed in range(3)}
    width = [found.high - found.low for found in (paired.difference(runs, images) for runs in (steady, varied))]
    assert width[1] > 1.5 * width[0]


def test_folds_are_put_together_and_what_has_no_partner_is_left_out():
    runs = {(seed, f'{k}/2'): draws(seed, 0.9, 50) for seed in (0, 1) for k in (1, 2)}
    resnets = dict(runs)
    assert paired.difference(runs, resnets)[3:] == (2, 100)
    del resnets[1, '2/2']  # the second seed is not finished
    assert paired.difference(runs, resnets)[3:] == (1, 100)
    resnets[0, '1/2'] = resnets[0, '1/2'][:-1]  # other images
    assert paired.difference(runs, resnets)[3:] == (1, 50)
    assert paired.difference({(7, ''): draws(0, 1)}, resnets) is None
    assert paired.difference({(0, ''): draws(0, 1, 1)}, {(0, ''): draws(1, 1, 1)}) is None  # no interval of one image
    both = runs | {(0, f'{k}/3'): draws(0, 0.9, 30) for k in (1, 2, 3)}
    with pytest.raises(ValueError, match='dealt out in several ways'):
        paired.difference(both, both)


def test_images_that_a_run_could_not_read_do_not_count():
    ours, theirs = np.ones(10, np.int8), np.zeros(10, np.int8)
    theirs[3], ours[4] = -1, -1
    assert paired.difference({(0, ''): ours}, {(0, ''): theirs}) == (100, 100, 100, 1, 8)
    assert paired.difference({(0, ''): ours}, {(0, ''): np.full(10, -1, np.int8)}) is None
