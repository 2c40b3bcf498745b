"""Configuration: every file composes, and a YAML's keys are its target's keyword-only parameters."""

from __future__ import annotations

import inspect

import pytest
from hydra._internal.utils import _locate
from hydra.errors import HydraException
from omegaconf import OmegaConf

from configs import CONF, composed
from envs.offers.world.hidden_observation import HidingCodec
from envs.signatures import check_signatures

WITH_ROOMS = [CONF / "benchmark", CONF / "experiment"]  # groups whose files stand in rooms
GROUPS = sorted(
    [
        str(path.parent.relative_to(CONF)) + "=" + path.stem
        for path in CONF.rglob("*.yaml")
        if path.parent != CONF and not any(group in path.parents for group in WITH_ROOMS)
    ]
    + [
        f"{group.name}={path.relative_to(group).with_suffix('')}"
        for group in WITH_ROOMS
        for path in group.rglob("*.yaml")
    ]
)

# scripts whose groups these are; the rest is train.py's
PRIMARY = {
    "ab_test": "uplift",
    "benchmark": "bench",
    "sends": "import_sends",
    "trial_table": "uplift",
    "uplift_learner": "bench",
    "logging_policy": "collect",
    "ope": "evaluate",
    "ope/model": "evaluate",
}

# groups of parts that the default algorithm or environment doesn't have
OWNERS = {
    "uplift_learner=": "benchmark=uplift/qini",
    "without=": "experiment=ablation",
    "algo/exploration=": "algo=bandit",
    "algo/twin=": "algo=twin",
    "algo/encoder=": "algo=reward_model",
    "algo/behaviour_constraint=": "algo=cql",
    "algo/variance_reduction=": "algo=cql",
    "algo/critic=": "algo=ppo_expected",
    "env/corpus": "env=email",
    "env/evaluation=mail_policy": ("env=email", "algo=ppo_kl"),
    "env/evaluation=sft": ("env=email", "algo=sft"),
    "env/observation/theta=": "env/observation=belief",
    "env/world=unlike_": "env=offers_unlike",
    "benchmark=learning/twin_policies": "benchmark.twin=twin.pt",
    **{
        f"algo/{part}=": "algo=ppo_kl"
        for part in ("language_model", "generation", "advantage", "kl_controller", "reward_model_training", "sft")
    },
    "algo_env=ppo_expected_offers_twin": ("env=offers_twin", "env/observation=history", "algo=ppo_expected"),
    **{f"algo_env={algo}_log": ("env=log", f"algo={algo}") for algo in ("bandit", "bcq", "cql")},
    **{f"algo_env={algo}_email": ("env=email", f"algo={algo}") for algo in ("ppo_kl", "sft", "reward_model")},
}

# experiments whose figures are of features that determine every parameter, and of states that are seen
FULL_INFORMATION = [
    *("full_information", "static", "caps", "frontier", "rollover", "logistic", "tradeoff", "gpu", "offers_long"),
    *("beliefs", "learner/full_information", "learner/states", "learner/caps", "learner/static"),
    "ablation",
]


def targets(node, path=""):
    """Yield (path, node) of everything that is instantiated below."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from targets(child, f"{path}.{key}")


def parameters_of(target) -> list[inspect.Parameter]:
    """Return what a target can be given; a subclass that passes **keywords on is given those of its base too."""
    parameters = list(inspect.signature(target).parameters.values())
    if inspect.isclass(target) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        own = {p.name for p in parameters}
        parameters += [p for p in parameters_of(target.__base__) if p.name not in own]
    return parameters


@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_every_file_composes_and_names_all_its_parameters(group):
    primary = PRIMARY.get(group.partition("=")[0], "train")
    owner = [
        one
        for part, choice in OWNERS.items()
        if group.startswith(part)
        for one in ((choice,) if isinstance(choice, str) else choice)
    ]
    logger = group.partition("=")[2] if group.startswith("logger=") else "tensorboard"
    # parts of others, under names of their own
    group = f"+{group}" if group.startswith(("uplift_learner=", "trial_table=")) else group
    config = composed(*owner, group, name=primary)
    found = dict(targets(OmegaConf.to_container(config, resolve=True)))
    assert {
        "train": {".algo", ".env", f".logger.{logger}"},
        "collect": {".logging_policy", ".env"},
        "import_sends": {".sends", ".env"},
        "evaluate": {".ope", ".ope.model"},
        "uplift": {".ab_test", ".table"},
    }.get(primary, {".benchmark"}) <= set(found)
    for path, node in found.items():
        if node["_target_"].split(".")[0] not in ("rlcore", "envs", "email_rl", "scripts"):
            continue
        try:
            parameters = parameters_of(_locate(node["_target_"]))
        except ImportError as error:
            if "is not installed: pip install" not in str(error):
                raise
            pytest.skip(str(error.__cause__))  # of an extra
        keyword_only = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert keyword_only == {key for key in node if not key.startswith("_")}, path
        assert all(p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY), path
    check_signatures(config)


@pytest.mark.slow
@pytest.mark.parametrize("override", ["algo.clipp=0.1", "env/world=ful", "algo.network.hiden=[8]", "sede=1"])
def test_a_typo_is_rejected_by_hydra(override):
    with pytest.raises(HydraException):
        composed(override)


@pytest.mark.slow
def test_evaluate_composes():
    assert composed(name="evaluate").checkpoint is None


def test_the_default_is_what_a_shop_can_have():
    """The state is hidden, features tell part of a customer, and training seasons start as seasons do."""
    env = composed("algo=ppo_expected", "env=offers").env
    assert issubclass(_locate(env.observation._target_), HidingCodec)
    assert env.population.r2 < 1
    assert composed("algo=ppo", "env=offers").env.observation == env.observation


@pytest.mark.long
@pytest.mark.parametrize("experiment", FULL_INFORMATION)
def test_what_is_measured_with_full_information_says_so(experiment):
    """Whatever else an experiment changes, and whether or not env=offers is named beside it."""
    known = composed("env=offers_full_information").env
    assert known.population.r2 == 1 and not issubclass(_locate(known.observation._target_), HidingCodec)
    for more in ([], ["env=offers"]):
        env = composed(f"experiment={experiment}", *more).env
        assert (env.population, env.observation) == (known.population, known.observation)


@pytest.mark.long
def test_no_number_stands_twice_in_a_file():
    for path in CONF.rglob("*.yaml"):
        OmegaConf.load(path)  # refuses duplicate keys
