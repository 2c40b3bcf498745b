"""What policies are given: groups, words, and who is a rival of equal information."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs.offers.policies.information import (
    FEATURES,
    GROUPS,
    ORACLE,
    UNINFORMED,
    Information,
    by_group,
)

ON_STATES = Information(FEATURES, ("states",), equations=True)
ON_BELIEFS = Information(FEATURES, ("beliefs",), equations=True)
LEARNED = Information(FEATURES, ("states", "counts"), training=("a simulator",))
BLIND = Information(FEATURES, ("history", "counts"), training=("a simulator",))


@pytest.mark.parametrize(
    "information, group, knows",
    [
        (ORACLE, "oracles (true θ)", "true θ, states, equations"),
        (ON_BELIEFS, "equations + features", "features, beliefs, equations"),
        (LEARNED, "features + simulator in training", "features, states, counts"),
        (replace(BLIND, training=("a log",)), "features + a log in training", "features, history, counts"),
        (replace(BLIND, true_spend=True), "features + simulator in training", "features, history, counts, true spend"),
        (
            Information(FEATURES, ("beliefs", "counts"), equations=True, training=("a simulator", "a log")),
            "features + simulator in training",
            "features, beliefs, counts, equations",
        ),
        (UNINFORMED, "nothing", "nothing"),
    ],
)
def test_groups_and_words(information, group, knows):
    metrics = information.to_metrics()
    assert (metrics["group"], metrics["information"]) == (group, knows) and group in GROUPS
    assert metrics.get("training", "") == ", ".join(information.training)


def test_a_rival_of_equal_information_sees_no_more():
    assert ON_STATES.is_no_richer_than(LEARNED) and ON_BELIEFS.is_no_richer_than(LEARNED)
    assert ON_BELIEFS.is_no_richer_than(BLIND) and not ON_STATES.is_no_richer_than(BLIND)
    with_counts = replace(ON_STATES, season=("states", "counts"))
    assert with_counts.is_no_richer_than(LEARNED) and not with_counts.is_no_richer_than(ON_STATES)
    for other in (ORACLE, UNINFORMED, replace(ON_BELIEFS, true_spend=True)):
        assert not other.is_no_richer_than(BLIND)
    assert replace(ON_BELIEFS, true_spend=True).is_no_richer_than(replace(BLIND, true_spend=True))


def test_who_knows_true_parameters_is_no_rival_of_who_learned_from_a_log():
    labelled = replace(ON_BELIEFS, training=("true parameters of training customers",))
    assert labelled.is_no_richer_than(BLIND) and not labelled.is_no_richer_than(replace(BLIND, training=("a log",)))
    assert not labelled.is_no_richer_than(replace(BLIND, training=("a simulator", "a log")))  # θ̂ of a twin
    assert labelled.is_no_richer_than(replace(BLIND, training=("a log", *labelled.training)))


def test_rows_go_by_group_and_then_from_the_best_down():
    scores = {"a": (UNINFORMED, 0.1), "b": (ORACLE, 0.2), "c": (LEARNED, 0.9), "d": (ORACLE, 0.3)}
    rows = {name: {"group": information.group, "score": score} for name, (information, score) in scores.items()}
    assert list(by_group(rows)) == ["d", "b", "c", "a"]
    rows["b"]["group"] = "a group of its own"
    assert list(by_group(rows)) == ["d", "c", "a", "b"]
