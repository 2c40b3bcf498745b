"""The peers of our uplift learners: scikit-uplift's on boosting or logistic regression, from the extra `bench`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]  # customers [B, D] → effects [B]


def peers(boosters: dict[str, dict]) -> dict[str, Callable[..., Score]]:
    """Learners by name, each of (x, treated, outcome), for scikit-learn's boosters and their settings.

    S is SoloModel, T is TwoModels of scikit-uplift.
    """
    try:
        from sklearn import ensemble
        from sklift.models import SoloModel, TwoModels
    except ImportError as error:
        raise ValueError(
            "benchmark=uplift/qini: scikit-uplift and scikit-learn are not installed: pip install -e '.[bench]'"
        ) from error

    def solo(booster: str, settings: dict) -> Callable[..., Score]:
        classifier = getattr(ensemble, f"{booster}Classifier")
        return lambda x, treated, outcome: SoloModel(classifier(**settings)).fit(x, outcome, treated).predict

    def two(booster: str, settings: dict) -> Callable[..., Score]:
        classifier = getattr(ensemble, f"{booster}Classifier")
        return lambda x, treated, outcome: (
            TwoModels(classifier(**settings), classifier(**settings)).fit(x, outcome, treated).predict
        )

    def cross(booster: str, settings: dict) -> Callable[..., Score]:
        """X-learner (Künzel et al. 2019), which scikit-uplift lacks."""
        classifier, regressor = (getattr(ensemble, f"{booster}{kind}") for kind in ("Classifier", "Regressor"))

        def fit(x, treated, outcome):
            one, none = treated == 1, treated == 0
            means = [classifier(**settings).fit(x[rows], outcome[rows]) for rows in (none, one)]
            on_treated = regressor(**settings).fit(x[one], outcome[one] - means[0].predict_proba(x[one])[:, 1])
            on_others = regressor(**settings).fit(x[none], means[1].predict_proba(x[none])[:, 1] - outcome[none])
            share = one.mean()
            return lambda new: share * on_others.predict(new) + (1 - share) * on_treated.predict(new)

        return fit

    return {
        f"{kind} of {name}": make(row["booster"], row["settings"])
        for name, row in boosters.items()
        for kind, make in (("S", solo), ("T", two), ("X", cross))
    }


def logistic_peers(inverse_penalties: list[float]) -> dict[str, Callable[..., Score]]:
    """TwoModels, and SoloModel with treatment interactions, on L2 logistic regression, by name and C."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklift.models import SoloModel, TwoModels
    except ImportError as error:
        raise ValueError(
            "benchmark=uplift/rct: scikit-uplift and scikit-learn are not installed: pip install -e '.[bench]'"
        ) from error

    def logistic(c: float):
        return LogisticRegression(C=c, max_iter=2000)

    def two(c: float) -> Callable[..., Score]:
        return lambda x, treated, outcome: TwoModels(logistic(c), logistic(c)).fit(x, outcome, treated).predict

    def interaction(c: float) -> Callable[..., Score]:
        return lambda x, treated, outcome: (
            SoloModel(logistic(c), method="treatment_interaction").fit(x, outcome, treated).predict
        )

    return {
        f"{kind}, C = {c:g}": make(c)
        for c in inverse_penalties
        for kind, make in (("two models", two), ("interactions", interaction))
    }
