"""Close points are found among too many for one tree."""

import numpy as np

from mil.cohort.neighbours import TOGETHER, close_pairs

CLOSE = 200


def test_close_points_share_a_box_in_one_of_eight_searches():
    rng, found = np.random.default_rng(0), set()
    for _ in range(8):  # as the extreme patches of two slides, half of which are the same
        points = rng.normal(size=(TOGETHER, 24))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        apart = rng.normal(size=(CLOSE, 24))
        apart *= 0.1 / np.linalg.norm(apart, axis=1, keepdims=True)  # half of the radius
        pairs, crowded = close_pairs(np.vstack([points, points[:CLOSE] + apart]), 0.2, 8, rng)
        assert not crowded.any()
        found |= pairs
    assert found == {(i, TOGETHER + i) for i in range(CLOSE)}


def test_a_crowd_is_in_no_pair():
    points = np.vstack([np.zeros((9, 3)), [[1, 1, 1], [1, 1, 1.01]], np.eye(3) * 5])
    pairs, crowded = close_pairs(points, 0.1, 8, np.random.default_rng(0))
    assert pairs == {(9, 10)} and crowded.tolist() == [True] * 9 + [False] * 5
