"""What a policy is given of customers, season and world, so that tables compare like with like."""

from __future__ import annotations

from dataclasses import dataclass

from envs.offers.populations.parameter_regression import REGRESSION_LABELS

TRUTH, FEATURES, NOTHING = "true θ", "features", "nothing"  # what is given of a customer's parameters
STATES, COUNTS, MARGINS = "states", "counts", "margins"  # of what is observed of a season; counts have margins too
SIMULATOR, LOG = "a simulator", "a log"  # what a policy was trained in or on

ORACLES = "oracles (true θ)"
EQUATIONS = "equations + features"
TRAINED = "features + simulator in training"
LOGGED = "features + a log in training"
GROUPS = (ORACLES, EQUATIONS, TRAINED, LOGGED, NOTHING)  #: in the order of a table


@dataclass(frozen=True)
class Information:
    """What a policy is given.

    `parameters` is TRUTH, FEATURES or NOTHING. `season` names what is observed of the season's course: states, beliefs,
    history, counts, margins. `equations` are those of the world, by which parameters become outcomes. With `true_spend`
    the world, and no forecast, says what messages cost. `training` names what training was given beside observations.
    """

    parameters: str
    season: tuple[str, ...] = ()
    equations: bool = False
    true_spend: bool = False
    training: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The group of a table's rows that the policy stands in."""
        if self.parameters == TRUTH:
            return ORACLES
        if self.parameters == NOTHING:
            return NOTHING
        if SIMULATOR in self.training:
            return TRAINED
        if LOG in self.training:
            return LOGGED
        return EQUATIONS if self.equations else TRAINED

    @property
    def knows(self) -> str:
        """What is given at work, in words."""
        named = {"equations": self.equations, "true spend": self.true_spend}
        return ", ".join((self.parameters, *self.season, *(name for name, given in named.items() if given)))

    def to_metrics(self) -> dict[str, str]:
        """Lay everything out as entries of a row of metrics.json."""
        metrics = {"group": self.group, "information": self.knows}
        return metrics | ({"training": ", ".join(self.training)} if self.training else {})

    def is_no_richer_than(self, other: Information) -> bool:
        """Return whether a policy is given something of each customer, and no more than another policy is.

        Equations don't count: who trained in a simulator of the world was given them too. Who learned from a log was
        given neither them nor any customer's true parameters. Beliefs and histories count as one: both are made of what
        the season showed. Counts have the mean margin of the purchases seen.
        """
        theirs = {*other.season, MARGINS} if COUNTS in other.season else set(other.season)
        sees_more = any(shown in self.season and shown not in theirs for shown in (STATES, COUNTS, MARGINS))
        labelled = REGRESSION_LABELS in self.training and REGRESSION_LABELS not in other.training
        knows_more = (self.true_spend and not other.true_spend) or (labelled and LOG in other.training)
        return self.parameters == other.parameters == FEATURES and not sees_more and not knows_more


ORACLE = Information(TRUTH, (STATES,), equations=True)
UNINFORMED = Information(NOTHING)


def by_group(rows: dict[str, dict]) -> dict[str, dict]:
    """Order rows with a group and a score by group, and within a group from the best down.

    Groups come in the order of GROUPS, others after them.
    """

    def place(row: dict) -> tuple[int, float]:
        group = GROUPS.index(row["group"]) if row["group"] in GROUPS else len(GROUPS)
        return group, -row["score"]

    return dict(sorted(rows.items(), key=lambda item: place(item[1])))
