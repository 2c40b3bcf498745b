"""The peers of our uplift learners: scikit-uplift's on gradient boosting, from the extra `bench`."""

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
