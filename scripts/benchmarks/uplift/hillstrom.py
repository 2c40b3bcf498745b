"""The file of Hillstrom's e-mail challenge, with the features on which learners were compared."""

from __future__ import annotations

from pathlib import Path

import torch

from envs.ab_test.trial_table import Trial

ARMS = {"No E-Mail": "no mail", "Mens E-Mail": "men's mail", "Womens E-Mail": "women's mail"}
OUTCOMES = ("visit", "conversion", "spend")
NUMBERS = ("recency", "history", "mens", "womens", "newbie")
TEXTS = ("zip_code", "channel")


def read_hillstrom(path: str | None) -> tuple[Trial, dict[str, list[int]]]:
    """Read the shop's customers, and the columns of the features by the file's column.

    Money spent enters as log(1 + x). Raises ValueError, with row and column, where the file is another.
    """
    import pandas as pd

    if path is None or not Path(path).is_file():
        raise ValueError(f"benchmark.path: expected the file of Hillstrom's e-mail challenge, got {path}")
    frame = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    lacking = [name for name in (*NUMBERS, *TEXTS, "segment", *OUTCOMES) if name not in frame.columns]
    if lacking:
        raise ValueError(f"{path}: no column '{lacking[0]}'; there are {', '.join(frame.columns)}")
    unknown = ~frame["segment"].isin(ARMS)
    if unknown.any():
        raise ValueError(
            f"{path}: row {unknown.to_numpy().argmax() + 2}, column 'segment': expected one of "
            f"{', '.join(ARMS)}, got '{frame['segment'][unknown].iloc[0]}'"
        )
    for name in (*NUMBERS, *OUTCOMES):
        if frame[name].isna().any():
            raise ValueError(f"{path}: row {frame[name].isna().to_numpy().argmax() + 2}, column '{name}': no number")
    numbers = torch.tensor(frame[list(NUMBERS)].to_numpy(float))
    numbers[:, NUMBERS.index("history")] = numbers[:, NUMBERS.index("history")].log1p()
    levels = pd.get_dummies(frame[list(TEXTS)])
    features = torch.cat((numbers, torch.tensor(levels.to_numpy(float))), 1).float()
    names = [*NUMBERS, *levels]
    count = len(frame)
    trial = Trial(
        ids=[str(k + 1) for k in range(count)],
        unit=torch.arange(count),
        arms=list(ARMS.values()),
        arm=torch.tensor(frame["segment"].map({name: k for k, name in enumerate(ARMS)}).to_numpy()),
        propensity=torch.full((count,), 1 / 3, dtype=torch.float64),
        outcomes={name: torch.tensor(frame[name].to_numpy(float)) for name in OUTCOMES},
        features=features,
        feature_names=names,
    )
    groups = {
        name: [k for k, column in enumerate(names) if column == name or column.startswith(f"{name}_")]
        for name in (*NUMBERS, *TEXTS)
    }
    return trial, groups
