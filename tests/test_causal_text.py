"""Premise and hypothesis text: the released wording written, and read back strictly."""

from __future__ import annotations

import pytest
from enumerated import labelled_dags

from pipeline.causal.classes import classes
from pipeline.causal.dseparation import independences
from pipeline.causal.equivalence import cpdag
from pipeline.causal.relations import Hypothesis, Relation, hypotheses
from pipeline.causal.solver import solve
from pipeline.causal.text import (
    join,
    letters,
    read_hypothesis,
    read_premise,
    read_row,
    split_names,
    template,
    write_hypothesis,
    write_premise,
    write_row,
)
from pipeline.causal.wording import PARAPHRASED, RELEASED
from pipeline.errors import UserError

PREMISE = (
    "Suppose there is a closed system of 3 variables, A, B and C. All the statistical relations among these 3 "
    "variables are as follows: A correlates with C. B correlates with C. However, A is independent of B."
)
ROW = f"Premise: {PREMISE}\nHypothesis: A directly causes C."


def test_a_premise_as_released() -> None:
    assert write_premise([(0, 1, ())], letters(3)) == PREMISE
    assert write_premise([], letters(2)).endswith("as follows: A correlates with B.")
    assert write_premise([(0, 1, ())], letters(2)).endswith("as follows: A is independent of B.")
    assert write_premise([(0, 1, (2, 3, 4))], letters(5)).endswith("A and B are independent given C, D and E.")


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_premise_gives_back_its_class_and_its_text(n: int) -> None:
    for each in classes(n):
        text = write_premise(each.independences(), letters(n))
        premise = read_premise(text)
        assert (premise.names, premise.independences) == (letters(n), each.independences())
        assert solve(premise) == each.cpdag
        assert write_premise(premise.independences, premise.names) == text


def test_every_labelled_dag_on_four_variables_is_recovered_from_its_premise() -> None:
    for dag in labelled_dags(4):
        assert solve(read_premise(write_premise(independences(dag), letters(4)))) == cpdag(dag)


def test_other_names_and_another_order_are_read() -> None:
    text = PREMISE.replace("A", "Z9").replace("Z9ll", "All").replace("Z9 is independent of B", "B is independent of Z9")
    premise = read_premise(text)
    assert premise.names == ("Z9", "B", "C")
    assert premise.independences == ((0, 1, ()),)


@pytest.mark.parametrize("wordings", [RELEASED.hypotheses, PARAPHRASED.hypotheses])
def test_every_hypothesis_is_read_back(wordings: dict[Relation, tuple[str, ...]]) -> None:
    names = letters(5)
    for asked in hypotheses(5):
        for wording in wordings[asked.relation]:
            assert read_hypothesis(wording.format(x=names[asked.x], y=names[asked.y]), names) == asked
    swapped = RELEASED.hypotheses[Relation.COLLIDER][0].format(x="C", y="B")
    assert read_hypothesis(swapped, names) == Hypothesis(Relation.COLLIDER, 1, 2)


def test_the_released_template_follows_the_wording() -> None:
    names = letters(2)
    assert template(write_hypothesis(Hypothesis(Relation.DIRECT, 0, 1), names)) == "parent"
    assert template(write_hypothesis(Hypothesis(Relation.DIRECT, 1, 0), names)) == "child"
    assert template(write_hypothesis(Hypothesis(Relation.INDIRECT, 1, 0), names)) == "non-parent ancestor"
    assert template(write_hypothesis(Hypothesis(Relation.INDIRECT, 0, 1), names, 1)) == "non-child descendant"
    assert template(write_hypothesis(Hypothesis(Relation.COLLIDER, 0, 1), names)) == "has_collider"
    assert template(write_hypothesis(Hypothesis(Relation.CONFOUNDER, 0, 1), names)) == "has_confounder"


def test_a_row_is_written_and_read() -> None:
    parsed = read_row(ROW)
    assert write_row(PREMISE, "A directly causes C.") == ROW
    assert parsed.hypothesis == Hypothesis(Relation.DIRECT, 0, 2)
    assert parsed.premise.correlations == {(0, 2), (1, 2)}


@pytest.mark.parametrize("names", [["A"], ["A", "B"], ["A", "B", "C"], ["A", "B", "C", "D"]])
def test_lists_of_names(names: list[str]) -> None:
    assert split_names(join(names)) == names


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("\nHypothesis: A directly causes C.", "", "a row is"),
        ("Premise: Suppose", "Suppose", "a row is"),
        ("Suppose there is", "There is", "begins with"),
        ("of 3 variables", "of 4 variables", "closed system of 4 variables .* lists: 'A, B and C'"),
        ("these 3", "these 4", "closed system of 3 variables .* lists: 'A, B and C'"),
        ("A, B and C.", "A, A and C.", "lists: 'A, A and C'"),
        ("B correlates with C.", "B correlates with D.", "'D'"),
        ("B correlates with C.", "B correlates with B.", "twice"),
        ("B correlates with C.", "B is linked to C.", "not a whole statement"),
        (" However, A is independent of B.", " However, A is indep", "not a whole statement"),
        (" However, A is independent of B.", "", "neither of correlated and independent"),
        ("A correlates with C.", "A correlates with C. A correlates with B.", "both of correlated and independent"),
        ("A is independent of B.", "A and B are independent given D.", "'D'"),
        ("A is independent of B.", "A and B are independent given A.", "twice"),
        ("A directly causes C.", "A directly causes D.", "'D'"),
        ("A directly causes C.", "A directly causes A.", "one variable"),
        ("A directly causes C.", "A makes C.", "none of the known wordings"),
    ],
)
def test_other_text_is_refused_with_the_reason(old: str, new: str, reason: str) -> None:
    assert ROW.count(old) == 1
    with pytest.raises(UserError, match=reason):
        read_row(ROW.replace(old, new))


@pytest.mark.parametrize(
    "statements",
    [
        [(0, 1, ()), (0, 2, ()), (1, 2, ())],
        [(0, 1, ()), (0, 1, (2,)), (0, 2, ())],
        [(0, 2, ()), (1, 3, ())],
    ],
)
def test_statements_that_no_dag_satisfies(statements: list[tuple[int, int, tuple[int, ...]]]) -> None:
    premise = read_premise(write_premise(statements, letters(4)))
    with pytest.raises(UserError, match="no DAG"):
        solve(premise)


def test_a_dropped_independence_is_noticed() -> None:
    for each in classes(4):
        stated = each.independences()
        for place in range(len(stated)):
            premise = read_premise(write_premise(stated[:place] + stated[place + 1 :], letters(4)))
            try:
                assert solve(premise) != each.cpdag
            except UserError as error:
                assert "no DAG" in str(error)
