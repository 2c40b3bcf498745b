"""What the scripts say of an override that fits no key, no choice of a group, or no range: one line, exit code 2."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from configs import composed
from faulty_numbers import FAULTY_NUMBERS
from script_runner import run
from scripts.shared.explanations import unreadable
from scripts.shared.overrides import is_parameter, keys_of, most_alike, no_such_key, overrides_first


def error_of(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo.lr=1e-3", "algo.lr: no such key; did you mean algo.optimizer.lr?"),
        ("+algo.lr=1e-3", "algo.lr: no such key; did you mean algo.optimizer.lr?"),
        ("+algo.optimizer.momentum=0.9", "algo.optimizer.momentum: no such key"),
        ("+algo.clip=0.1", "algo.clip: stands in the configuration; expected algo.clip=VALUE, without a plus"),
        ("log=a=b.parquet", """log=a=b.parquet: quote values that hold = , # ( ) [ ] { }: 'log="a=b.parquet"'"""),
        (
            "log=été.pt",
            """log=été.pt: quote values that hold = , # ( ) [ ] { } or letters beyond ASCII: 'log="été.pt"'""",
        ),
        ("log=a,b.parquet", "log=a,b.parquet: several values: -m runs each of them"),
        ("hydra.run.dirr=x", "hydra.run.dirr: no such key; did you mean hydra.run.dir?"),
        ("+hydra.job.nam=x", "hydra.job.nam: no such key; did you mean hydra.job.name?"),
        ("hydra.job.chdir=maybe", "hydra.job.chdir: Value 'maybe' is not a valid bool"),
        ("hydra/launcher=nothing", "hydra/launcher=nothing: no such choice; expected basic, joblib"),
        ("--multi-run", "--multi-run: no such option; --help lists them"),
        ("env/world=ful", "env/world=ful: no such choice; did you mean full? expected fatigue_only, full, "),
        (
            "+env.catalogue.offers.euro_9={value: -1}",
            "env.catalogue.offers.euro_9.value: expected a number in [0, 1e6]",
        ),
    ],
)
def test_an_unknown_key_or_an_unreadable_value_is_one_line(tmp_path, override, says):
    assert error_of(run(tmp_path, "train", override)).startswith(says)


def test_of_a_known_group_only_keys_of_this_group_are_suggested():
    config = OmegaConf.create({"algo": {"gamma": 1}, "env": {"margin_rate": 1, "gama": 1}})
    assert no_such_key("algo.learning_rat", config) == "algo.learning_rat: no such key"
    assert no_such_key("algo.gama", config) == "algo.gama: no such key; did you mean algo.gamma?"
    assert no_such_key("agent.gama", config) == "agent.gama: no such key; did you mean env.gama?"


def test_options_of_hydra_may_stand_between_overrides(tmp_path):
    (tmp_path / "shop" / "env" / "world").mkdir(parents=True)
    (tmp_path / "shop" / "env" / "world" / "mine.yaml").write_text("defaults: [full, _self_]\n")
    between = ["algo=ppo", "-cd", "shop", "env/world=mine", "env.num_agents=0"]
    assert overrides_first(between) == ["algo=ppo", "env/world=mine", "env.num_agents=0", "-cd", "shop"]
    assert overrides_first(["-m", "seed=0,1", "--info", "all"]) == ["seed=0,1", "-m", "--info", "all"]
    assert error_of(run(tmp_path, "train", *between)).startswith("env.num_agents: expected ")


def test_a_key_of_the_sweep_is_told_from_hydras(tmp_path):
    said = error_of(run(tmp_path, "train", "-m", "seed=0,1", "hydra.sweeper.parms=x"))
    assert said == "hydra.sweeper.parms: no such key; did you mean hydra.sweeper.params?"


def test_a_key_that_only_the_checkpoints_environment_has_is_told_how_to_write_it(tmp_path):
    said = error_of(run(tmp_path, "evaluate", "checkpoint=checkpoint.pt", "env.population.path=next.csv"))
    assert said.startswith("env.population.path: no such key here; ") and said.endswith("+env.population.path=VALUE")


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("lr", "algo.optimizer.lr"),
        ("algo.clipp", "algo.clip"),
        ("env.reward.churn_costs", "env.reward.churn_cost"),
        ("algo.network.hiden", "algo.network.hidden"),
        ("world.season", "env.world.season"),
        ("xyzzy", None),
    ],
)
def test_the_key_with_the_most_similar_last_word_is_suggested(key, found):
    assert most_alike(key, keys_of(composed("algo=ppo", "env=offers"))) == found


def test_parameters_of_classes_of_others_may_be_added():
    shipped = composed("algo=ppo", "env=offers")
    assert is_parameter("algo.optimizer.weight_decay", shipped)
    assert not is_parameter("algo.optimizer.momentum", shipped)
    assert not is_parameter("algo.lr", shipped)
    assert not is_parameter("nothing.here", shipped)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["a=b.pt", "a#(1).pt", "{a}.pt", "a[0].pt"])
def test_a_path_is_shown_in_quotes_that_hydra_reads(path):
    said = unreadable(f"checkpoint={path}")
    quoted = said.rpartition(": ")[2]
    assert quoted == f"""'checkpoint="{path}"'"""
    assert composed(quoted.strip("'"), name="evaluate").checkpoint == path


@pytest.mark.slow
@pytest.mark.parametrize("key", list(FAULTY_NUMBERS)[::2])
def test_numbers_that_no_run_can_mean_are_one_line_by_the_script(tmp_path, key):
    values = FAULTY_NUMBERS[key]
    first = values[: values.index("]") + 1] if values.startswith("[") else values.partition(",")[0]
    said = error_of(run(tmp_path, "train", f"{key}={first}"))
    assert said.startswith(key) and ": expected " in said
