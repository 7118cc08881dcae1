"""Columns that models are told of: what kind each is, what is missing, and their encoding by training slides alone."""

import numpy as np
import pandas as pd
import pytest

from mil.cohort.covariates import Columns, read_covariates
from tiling.jobs.errors import RequestError
from tiling.manifest import load_table

AGE = ["60", "70", "", "50", "NA", "60"]
SEX = ["f", "m", "m", "f", "", "f"]


def _rows(**columns):
    frame = pd.DataFrame({"slide_id": [f"s{i}" for i in range(len(next(iter(columns.values()))))], **columns})
    return load_table(frame, needs_path=False)


def _encoded(covariates, by):
    return covariates.encoded(np.array(by))


def test_numbers_and_categories_are_told_apart_and_missing_values_are_flagged():
    found = read_covariates(_rows(sex=SEX, age=AGE), ["sex", "age"])
    assert found.columns.described() == {"age": "numbers", "sex": ["f", "m"]}
    assert Columns.restored(found.columns.described()) == found.columns
    assert found.values[:, :2].tolist() == [[60, 0], [70, 0], [0, 1], [50, 0], [0, 1], [60, 0]]
    assert found.values[:, 2:].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_the_encoding_is_standardised_over_the_slides_that_it_is_fitted_to():
    found = read_covariates(_rows(sex=SEX, age=AGE), ["age", "sex"])
    encoded = _encoded(found, range(6))
    assert encoded.mean(axis=0) == pytest.approx(np.zeros(5)) and encoded.std(axis=0) == pytest.approx(np.ones(5))
    assert encoded[2, 0] == encoded[4, 0] == pytest.approx(0)  # a missing age is the mean one, and flagged
    few = _encoded(found, [0, 1, 3])  # nothing is missing there
    ages = np.array([60, 70, 50])
    assert few[[0, 1, 3], 0] == pytest.approx((ages - ages.mean()) / ages.std())
    assert few[2, :2].tolist() == [0, 0] and few[4].tolist() == [0] * 5


def test_a_category_that_no_training_slide_has_counts_as_missing():
    stage = ["I", "II", "I", "", "III", "II"]
    found = read_covariates(_rows(stage=stage), ["stage"])
    encoded = _encoded(found, [0, 1, 2, 3])
    assert encoded[4].tolist() == encoded[3].tolist() and encoded[3, -1] > 1
    assert _encoded(found, [0, 1, 2])[3:5].tolist() == [[0] * 4] * 2  # where none was missing, it is the mean slide


def test_other_slides_have_no_part_in_the_encoding():
    rows = _rows(age=["60", "70", "50", "999"], sex=["f", "m", "f", "x"])
    other = _rows(age=["60", "70", "50", "1"], sex=["f", "m", "f", "m"])
    fitted = [read_covariates(of, ["age", "sex"]) for of in (rows, other)]
    assert fitted[0].columns.encoding(fitted[0].values[:3])[0].shape == (6, 6)
    ages = [of.encoded(np.arange(3))[:3, :2] for of in fitted]
    assert (ages[0] == ages[1]).all()


@pytest.mark.parametrize(
    ("columns", "names", "said"),
    [
        ({"age": AGE}, ["age", "stage"], "no column 'stage'; the columns are 'age'"),
        ({"age": ["60", "61", "63", "old", "62", "65"]}, ["age"], "row 5: age is 'old', expected a number such as 63"),
        ({"age": ["60"] * 5 + [""]}, ["age"], "age is the same in all slides with features; leave it out"),
        ({"who": [f"text {i}" for i in range(30)]}, ["who"], "who has 30 different texts, such as 'text 0'"),
    ],
)
def test_columns_that_say_nothing_are_refused(columns, names, said):
    with pytest.raises(ValueError, match=said):
        read_covariates(_rows(**columns), names)


def test_other_tables_are_read_as_the_first_was():
    columns = read_covariates(_rows(age=AGE, sex=SEX), ["age", "sex"]).columns
    values, warnings = columns.read(_rows(sex=["x", "m", "null"], age=["", "55", "70"]))
    assert values.tolist() == [[0, 1, 0, 0, 1], [55, 0, 0, 1, 0], [70, 0, 0, 0, 1]]
    assert warnings == [
        "sex 'x' was in no slide that the run was trained on and counts as missing; known are f, m",
    ]
    with pytest.raises(RequestError, match="columns age, sex, and the slide table has no 'sex'; add the column, with"):
        columns.read(_rows(age=AGE))
    with pytest.raises(RequestError, match="row 3: age is 'old', expected a number"):
        columns.read(_rows(age=["1", "old"], sex=["f", "f"]))
