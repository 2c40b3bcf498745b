"""PPO with a KL penalty on text: token statistics, the loop's mathematics, toys with a known optimum, the script."""

from __future__ import annotations

import json
import math
import random
from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM, AutoTokenizer

import script_runner
from configs import composed
from email_rl.data import metrics
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.tokenized_mails import TokenizedMails
from email_rl.reward_model.reward_model import RewardModel
from email_rl.training.diagnostics import rollout_metrics
from email_rl.training.sft import SFT
from mail_files import made_up_text, mail_rows, write_csv
from rlcore import losses
from rlcore.runs import checkpoint
from rlcore.runs.logger import NullLogger
from stored import save_state
from tiny_email_trainer import GENERATION, Market, Taste, language_model, policy, tokenizer, train, trainer

SMALL = [
    "algo=ppo_kl",
    "env=email",
    "env.corpus.train=400",
    "env.corpus.valid=60",
    "env.corpus.test=60",
    "algo.language_model.dim=16",
    "algo.language_model.heads=2",
    "algo.language_model.layers=1",
    "algo.language_model.sft_steps=1",
    "algo.sft.enough_mails=0",
    "algo.min_reward_spread=0.0",
    "algo.reward_model_choice.must_beat_majority=false",
    "algo.reward_model_choice.few_mails=0",
    "algo.generation.response_tokens=84",
    "algo.generation.prompt_tokens=44",
    "algo.iterations=3",
    "algo.mails_per_iteration=16",
    "algo.minibatches=2",
    "algo.micro_batch_size=8",
    "algo.normalization_mails=16",
    "algo.eval_every=1",
    "algo.checkpoint_every=1",
    "algo.log_samples_every=1",
    "env.evaluation.test_mails=12",
    "env.evaluation.validation_mails=8",
    "env.evaluation.best_of=2",
    "env.evaluation.bootstrap_samples=50",
    "algo.encoder.dim=16",
    "algo.encoder.ffn_dim=16",
    "algo.encoder.layers=1",
    "algo.encoder.heads=2",
    "algo.encoder.steps=1",
    "algo.sft.updates_per_iteration=2",
    "algo.reward_model_training.updates_per_iteration=4",
    "algo.reward_model_training.eval_every=1",
]


@cache
def config(*overrides):
    return composed(*overrides)


def hand(token_rows, width=6):
    """TokenizedMails of given mails (token lists), each after the prompt `a c`."""
    n = len(token_rows)
    response = torch.tensor([row + [3] * (width - len(row)) for row in token_rows])
    own = torch.tensor([[t < len(row) for t in range(width)] for row in token_rows])
    return TokenizedMails(torch.tensor([[0, 0, 1, 3]] * n), torch.tensor([[0, 0, 1, 1]] * n), response, own)


@pytest.mark.slow
# ── what a policy reads ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_ratio_is_1_before_the_first_update(kind):
    """In float32, with padding, with early ends, in any batching, though the model came with dropout."""
    made = trainer(kind=kind)
    rollout = made.collect()
    again = made.policy(rollout.mails)
    response_mask = rollout.mails.response_mask
    assert (~response_mask).any() and (rollout.mails.prompt_mask == 0).any()
    assert ((again.log_prob - rollout.log_prob)[response_mask].exp() - 1).abs().max() < 1e-5
    assert ((rollout.reference_log_prob - rollout.log_prob)[response_mask].exp() - 1).abs().max() < 1e-5
    metrics = made.accumulate_gradient(made.compute_advantages(rollout), torch.tensor(1.0))
    assert metrics["ratio"].item() == pytest.approx(1, abs=1e-5) and metrics["clipfrac"].item() == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_log_probabilities_do_not_know_of_padding(kind):
    made = policy(kind)
    samples = hand([[2, 4, 0], [5]])
    padded = samples._replace(
        prompt=torch.nn.functional.pad(samples.prompt, (3, 0), value=6),
        prompt_mask=torch.nn.functional.pad(samples.prompt_mask, (3, 0)),
    )
    longer = samples._replace(
        response=torch.nn.functional.pad(samples.response, (0, 2), value=5),
        response_mask=torch.nn.functional.pad(samples.response_mask, (0, 2)),
    )
    expected = made(samples).log_prob[samples.response_mask]
    assert torch.allclose(made(padded).log_prob[samples.response_mask], expected, atol=1e-5)
    assert torch.allclose(made(longer).log_prob[:, :6][samples.response_mask], expected, atol=1e-5)


def test_mails_read_by_length_are_read_as_all_at_once():
    """Batches are cut to their longest prompt and mail, have each mail once, and read fewer tokens."""
    made = LanguageModelPolicy(language_model(places=44), tokenizer(), **GENERATION)
    torch.nn.init.normal_(made.value_head.weight)
    generator = torch.Generator().manual_seed(0)
    read, wrote = (torch.randint(1, most, (30,), generator=generator)[:, None] for most in (21, 25))
    query, response = (torch.randint(7, (30, width), generator=generator) for width in (20, 24))
    samples = TokenizedMails(query, (torch.arange(20) >= 20 - read).long(), response, torch.arange(24) < wrote)
    parts = list(samples.length_buckets(torch.arange(3, 30), 6))
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(3, 30))
    for rows, part in parts:
        assert torch.equal(part.response_mask.sum(1), wrote[rows, 0]) and torch.equal(
            part.prompt_mask.sum(1), read[rows, 0]
        )
    assert sum(part.prompt.numel() + part.response.numel() for _, part in parts) < 27 * (20 + 24)
    whole, found = made(samples, entropy=True), made.token_statistics(samples, 6, entropy=True)
    for one, other in zip(whole, found):
        assert torch.allclose(one[samples.response_mask], other[samples.response_mask], atol=1e-5)


def test_log_probability_and_entropy_are_those_of_the_distribution_at_the_temperature():
    made = policy(temperature=0.5)
    samples = hand([[2, 4, 0], [5, 1, 1]])
    found = made(samples, entropy=True)
    for i, row in enumerate([[2, 4, 0], [5, 1, 1]]):
        for t, token in enumerate(row):
            with torch.no_grad():
                logits = made.language_model(input_ids=torch.tensor([[1, 3, *row[:t]]])).logits[0, -1] / 0.5
            p = logits.double().softmax(-1)
            assert found.log_prob[i, t].item() == pytest.approx(p[token].log().item(), abs=1e-5)
            assert found.entropy[i, t].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
    assert found.value.abs().max() == 0  # the head starts at zero


def test_a_value_stands_before_its_token():
    """The value of a token depends on the tokens before it, not on the token itself."""
    made = policy()
    torch.nn.init.normal_(made.value_head.weight)
    one, other = (made(hand([row])).value[0] for row in ([2, 4, 5, 0], [2, 4, 1, 0]))
    assert torch.equal(one[:3], other[:3]) and one[3] != other[3]


@pytest.mark.slow
# ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_micro_batches_add_up_to_the_minibatch():
    def step(size):
        made = trainer(
            f"algo.micro_batch_size={size}", "algo.epochs=1", "algo.minibatches=1", "algo.max_grad_norm=1000.0"
        )
        rollout = made.collect()
        metrics = made.update(made.compute_advantages(rollout))
        return {name: p.grad for name, p in made.policy.named_parameters()}, metrics

    (whole, a), (parts, b) = step(32), step(5)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, parts[name], atol=2e-6), name
    for name in ("ppo/policy_loss", "ppo/approxkl", "ppo/value_loss"):
        assert a[name].item() == pytest.approx(b[name].item(), abs=1e-6)


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient():
    def gradients(on):
        made = trainer(f"algo.gradient_checkpointing={on}", "algo.epochs=1", "algo.minibatches=1")
        made.update(made.compute_advantages(made.collect()))
        return [p.grad for p in made.policy.parameters()]

    for a, b in zip(gradients(False), gradients(True)):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_it_learns_as_it_does_eagerly(tape, precision):
    """To the last bit, before and after the recording, and in a baseline_trainer with a reference that has written."""

    def run(mode):
        made = trainer(
            "algo.iterations=6",
            "algo.eval_every=100",
            "algo.checkpoint_every=100",
            "algo/kl_controller=adaptive",
            "algo/advantage=grpo",
            "algo.generation.precision=" + precision,
            mode=mode,
        )
        train(made)
        other = made.baseline_trainer(made.advantage_estimator)
        train(other)
        return [*made.policy.state_dict().values(), *other.policy.state_dict().values()]

    before = policy(precision=precision).state_dict().values()
    eager, recorded = run("eager"), run("cudagraph")
    assert len(tape) >= 8 and not any(torch.equal(a, b) for a, b in zip(list(before)[:2], eager))
    for a, b in zip(eager, recorded):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision, near", [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_on_a_gpu_it_learns_recorded_as_eagerly(monkeypatch, precision, near):
    """A recording of one iteration is replayed in others, with other mails at the same addresses."""
    monkeypatch.setattr(Market, "device", torch.device("cuda"))
    runs = []
    for mode in ("eager", "cudagraph"):
        made = trainer(
            "algo.iterations=8",
            "algo.eval_every=100",
            "algo.checkpoint_every=100",
            "algo.generation.precision=" + precision,
            mode=mode,
        )
        train(made)
        runs.append(made.policy.state_dict())
    for name, x in runs[0].items():
        assert torch.allclose(x, runs[1][name], atol=near), name


def test_bfloat16_is_near():
    made, samples = policy(), hand([[2, 4, 0], [5]])
    low = policy(precision="bfloat16")
    low.load_state_dict(made.state_dict())
    difference = (made(samples).log_prob - low(samples).log_prob)[samples.response_mask].abs().max().item()
    assert 0 < difference < 0.05


def test_scores_are_standardised_on_the_reference_and_a_mail_without_an_end_gets_its_own():
    made = trainer("algo.missing_eos_score=-7.0")
    made.score_mean, made.score_std = 0.5, 2.0
    rollout = made.collect()
    stopped = ((rollout.mails.response == 0) & rollout.mails.response_mask).any(1)
    assert stopped.any() and not stopped.all()
    raw = made.rewards(rollout.contexts, rollout.texts)
    assert torch.allclose(rollout.score[stopped], ((raw - 0.5) / 2.0).float()[stopped])
    assert (rollout.score[~stopped] == -7).all()
    assert rollout_metrics(rollout, made.kl_controller.coef)["objective/num_eos"] == stopped.sum()


@pytest.mark.slow
def test_the_most_likely_outcome_can_be_the_reward():
    made = trainer("algo.reward=argmax")
    assert made.rewards(["a"] * 3, ["b b a", "a b a", ""]).tolist() == [2.0, -1.0, -1.0]
    assert trainer().rewards(["a"], ["b b a"]).item() == pytest.approx(-1 / 3 + 2 * 2 / 3)


def test_the_losses_are_the_published_ones_on_a_batch_by_hand():
    """Sums over a mail's own tokens as in lm-human-preferences (OpenAI) and TRL: clipped losses, k1 and k3."""
    generator = torch.Generator().manual_seed(5)
    new, old, advantage, value, before, target = (torch.randn(3, 4, generator=generator) for _ in range(6))
    new, old = 0.3 * new, 0.3 * old
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    loss, found = losses.ppo(
        log_prob=new,
        old_log_prob=old,
        advantage=advantage,
        entropy=torch.zeros_like(new),
        value=value,
        old_value=before,
        target=target,
        mask=mask,
        value_mask=mask,
        clip=0.2,
        clip_value=0.2,
        vf_coef=0.1,
        ent_coef=0.0,
    )
    policy_sum = value_sum = k3 = clipped = 0.0
    cells = [(i, t) for i in range(3) for t in range(4) if mask[i, t]]
    for cell in cells:
        ratio, a = math.exp((new[cell] - old[cell]).item()), advantage[cell].item()
        policy_sum += max(-a * ratio, -a * min(max(ratio, 0.8), 1.2))
        clipped += abs(ratio - 1) > 0.2
        near = min(max(value[cell].item(), before[cell].item() - 0.2), before[cell].item() + 0.2)
        value_sum += 0.5 * max((value[cell] - target[cell]).item() ** 2, (near - target[cell].item()) ** 2)
        k3 += ratio - 1 - math.log(ratio)
    n = len(cells)
    assert loss.item() == pytest.approx(policy_sum / n + 0.1 * value_sum / n, abs=1e-6)
    assert found["approx_kl"].item() == pytest.approx(k3 / n, abs=1e-6)
    assert found["clipfrac"].item() == pytest.approx(clipped / n)


@pytest.mark.long
def test_a_penalty_in_the_loss_is_the_k3_estimate_and_pulls_back_to_the_reference():
    made = trainer("algo/advantage=grpo", "algo.kl_controller.coef=1.0")
    with torch.no_grad():
        for p in made.policy.language_model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    batch = made.compute_advantages(made.collect())
    batch = batch._replace(advantage=0 * batch.advantage)  # nothing but the penalty is left
    x = (batch.reference_log_prob - batch.log_prob)[batch.mails.response_mask].double()
    k3 = (x.exp() - 1 - x).mean().item()
    assert (
        made.accumulate_gradient(batch, torch.tensor(1.0))["loss"].item() == pytest.approx(k3, rel=1e-4) and k3 > 0.05
    )
    for _ in range(10):
        made.update(batch)
    assert made.accumulate_gradient(batch, torch.tensor(1.0))["loss"].item() < 0.8 * k3


@pytest.mark.long
@pytest.mark.parametrize("name", ["gae", "rloo", "grpo", "reinforce_pp", "reward_weighted"])
def test_every_advantage_finds_the_optimum_of_a_toy(name):
    """P(conversion) is the share of `b`: a mail of b's alone is best. An untrained policy has a share of about 1/7."""
    made = trainer(
        f"algo/advantage={name}",
        "algo/kl_controller=fixed",
        "algo.kl_controller.coef=0.0",
        "algo.iterations=25",
        "algo.language_model.lr=1e-2",
        "algo.lr_schedule.final=1.0",
        "algo.eval_every=100",
        "algo.checkpoint_every=100",
        "algo.missing_eos_score=0.0",
        "algo.mails_per_iteration=64",
        "algo.micro_batch_size=64",
    )
    made.score_mean, made.score_std = 0.0, 1.0
    share = {}

    def measure(when):
        _, texts = made.policy.generate(
            ["a"] * 200, 1, torch.Generator().manual_seed(9), temperature=1.0, top_k=0, top_p=1.0, batch_size=200
        )
        share[when] = Taste().probabilities(None, texts)[:, 2].mean().item()

    measure("before")
    train(made)
    measure("after")
    assert share["before"] < 0.25 and share["after"] > 0.9


@pytest.mark.long
def test_the_penalty_keeps_the_policy_where_the_closed_form_says():
    """Mails of one token: max E[score] − β·KL is at π ∝ π_ref · exp(score / β).

    A mail of the stop token alone has ended: its score is that of an empty mail, −1. Every other mail has no stop token
    and scores missing_eos_score, 0.
    """
    made = trainer(
        "algo/advantage=rloo",
        "algo.kl_controller.coef=1.5",
        "algo.iterations=60",
        "algo.language_model.lr=3e-3",
        "algo.mails_per_iteration=128",
        "algo.micro_batch_size=128",
        "algo.eval_every=500",
        "algo.checkpoint_every=500",
        "algo.missing_eos_score=0.0",
    )
    made.policy.response_tokens = made.reference.response_tokens = 1
    made.score_mean, made.score_std = 0.0, 1.0
    made.sample_contexts = lambda n: ["a"] * n

    def p(model):
        with torch.no_grad():
            return model.language_model(input_ids=torch.tensor([[1]])).logits[0, -1].double().softmax(-1)

    reference = p(made.reference)
    best = reference * torch.exp(torch.tensor([-1.0] + [0.0] * 7) / 1.5)
    best /= best.sum()
    train(made)
    assert abs(reference[0] - best[0]) > 0.04
    assert (p(made.policy) - best).abs().max() < 0.015


# ── the whole job, small ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def build(kept, *overrides):
    """Make environment, agent and evaluation as scripts/train.py does."""
    cfg = config(*SMALL, f"algo.model_cache={kept}", *overrides)
    env = instantiate(cfg.env, _convert_="all")("cpu", 0)
    return instantiate(cfg.algo, _convert_="all")(env, 0), env.evaluation(env)


@pytest.mark.long
def test_a_resumed_run_equals_an_uninterrupted_one(kept, tmp_path):
    def run(agent, stop=lambda: False):
        train(agent, save=lambda: save_state(tmp_path / "c.pt", "ppo_kl", agent.state_dict()), should_stop=stop)
        return agent

    whole = run(build(kept, "algo/kl_controller=adaptive")[0])
    first = build(kept, "algo/kl_controller=adaptive")[0]
    run(first, lambda: first.iteration == 1)
    second = build(kept, "algo/kl_controller=adaptive")[0]
    second.load_state_dict(checkpoint.load(tmp_path / "c.pt")["agent"])
    assert second.iteration == 1
    run(second)
    for (name, a), b in zip(whole.policy.state_dict().items(), second.policy.state_dict().values()):
        assert torch.equal(a, b), name
    value_head_is_still = torch.equal(whole.policy.value_head.weight, whole.reference.value_head.weight)
    assert not (value_head_is_still and whole.advantage_estimator.critic)
    assert torch.equal(whole.kl_controller.coef, second.kl_controller.coef)


@pytest.mark.slow
def test_what_learnt_from_mails_does_not_start_from_a_checkpoint_and_goes_on_with_its_own_mails_alone():
    """Each algorithm on mails names in one line how to start from what was learnt; none trains nothing in silence."""
    made = trainer()
    for kind in (type(made), SFT, RewardModel):
        with pytest.raises(ValueError, match="^init: expected no checkpoint to start from: algo.*FOLDER") as error:
            kind.start_from(kind.__new__(kind), {})
        assert "\n" not in str(error.value)
    made.check_same_mails({"digest": made.digest})
    for kind in (type(made), SFT):
        with pytest.raises(ValueError, match="^resume: three contexts: other mails, or the same in another split"):
            kind.load_state_dict(made, {"digest": "another"})


@pytest.mark.long
def test_what_was_trained_is_kept_for_other_runs_with_the_same_settings(kept, capsys):
    build(kept)[0].setup(NullLogger(), lambda: False)
    folders = {path.name for path in kept.iterdir()}
    capsys.readouterr()
    build(kept, "algo/advantage=grpo")[0].setup(NullLogger(), lambda: False)
    assert {path.name for path in kept.iterdir()} == folders and capsys.readouterr().out.count("trained before") == 2
    build(kept, "algo.language_model.sft_lr=1e-3")[0].setup(NullLogger(), lambda: False)
    assert len({path.name for path in kept.iterdir()} - folders) == 1  # another reference, the same reward model


@pytest.mark.long
def test_a_users_csv_is_judged_by_a_model_of_other_mails(kept, tmp_path, capsys):
    path = write_csv(tmp_path / "mails.csv", mail_rows(300))
    agent, evaluation = build(kept, f"env.data={path}")
    sides = agent.env.splits
    assert set(sides) == {"train", "valid", "test", "judge"} and not set(sides["judge"].texts) & set(
        sides["train"].texts
    )
    train(agent, validate=lambda: evaluation.validate(agent))
    found = evaluation.evaluate(agent, "ppo_kl").to_metrics()
    assert 0 <= found["policy"]["judge_conversion"] <= 1 and "gold_conversion" not in found["policy"]
    mails = sides["valid"].contexts, sides["valid"].texts
    capsys.readouterr()
    judge = agent.judge()
    assert not torch.equal(judge.probabilities(*mails), agent.reward_model.probabilities(*mails))
    others, learnt = sides["train"] + sides["valid"] + sides["test"], agent.env.judge_dataset().train.outcome.tolist()
    counts = [1 + learnt.count(k) for k in range(3)]
    likely = judge.probabilities(others.contexts, others.texts).tolist()
    ahead = [math.log(p[y] / (counts[y] / sum(counts))) for p, y in zip(likely, others.outcome.tolist())]
    gain = f"by {sum(ahead) / len(ahead):.3f} nats a mail"
    assert gain in (said := "".join(capsys.readouterr())) and f"on the {len(others)} mails of the other splits" in said


@pytest.mark.long
def test_a_csv_whose_outcomes_are_shuffled_is_refused_before_anything_learns_from_its_reward(kept, tmp_path):
    """One sentence of each text tells its outcome: with them as they are there is a reward, with them shuffled none."""
    rng = random.Random(0)
    telling = ("no one ever came back", "they sent some short answer", "she bought two large ones")
    outcomes = [(0, 0, 0, 0, 1, 2)[i % 6] for i in range(120)]
    texts = [f"{made_up_text(rng, 9)} {telling[y]} {made_up_text(rng, 9)}" for y in outcomes]
    settings = [
        "algo.reward_model_choice.must_beat_majority=true",
        "algo.reward_model_choice.few_mails=200",
        "env.bag_of_words.lr=0.1",
        "env.bag_of_words.min_steps=200",
    ]
    for name, given in (("told", outcomes), ("shuffled", rng.sample(outcomes, k=len(outcomes)))):
        rows = [["customer", text, str(y)] for text, y in zip(texts, given)]
        path = write_csv(tmp_path / f"{name}.csv", rows)
        if name == "told":
            build(kept, f"env.data={path}", *settings)[0].setup(NullLogger(), lambda: False)
    done = script_runner.run(tmp_path, "train", *SMALL, f"algo.model_cache={kept}", f"env.data={path}", *settings)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "policy:" not in done.stdout
    error = done.stderr.strip().splitlines()[-1]
    assert f"{path}: no reward model is ahead of the majority" in error and "What would help" in error


def test_distinct_2_counts_pairs_of_words():
    assert metrics.distinct_n(["a b a b", "a c"], 2, 40) == pytest.approx(3 / 4)  # ab ba ab ac
    assert metrics.distinct_n(["a b c d e"] * 3, 2, 3) == pytest.approx(2 / 6)


@pytest.mark.long
def test_the_script_trains_judges_and_leaves_folders_that_transformers_loads(kept, tmp_path):
    done = script_runner.run(tmp_path, "train", *SMALL, f"algo.model_cache={kept}", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(found["reward_model"]) >= {"accuracy", "macro_f1", "log_loss", "ece"}
    for row in ("policy", "reference"):
        assert set(found[row]) >= {"proxy_reward", "gold_reward", "gold_conversion", "kl", "distinct_2", "mean_words"}
    assert set(found) >= {"sent", "best_of_2", "reward_weighted", "ppo_kl", "steps", "seconds"}
    assert found["reference"]["kl"] == 0 and found["steps"] == 48
    assert "| context | mail | score | KL, nats |" in (tmp_path / "run" / "train.log").read_text()
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    words = AutoTokenizer.from_pretrained(tmp_path / "run" / "policy")
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")["agent"]["policy"]["weights"]
    assert torch.equal(lm.get_input_embeddings().weight, state["language_model.transformer.wte.weight"])
    assert words.eos_token_id == words.convert_tokens_to_ids("<|endoftext|>")
    assert {"proxy_and_truth.png", "frontier.png", "outcomes.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, said",
    [
        (
            ["algo/language_model=local", "algo.language_model.source.path=nowhere"],
            "algo.language_model.source.path: expected a folder",
        ),
        (["algo.reward_model_folder=nowhere"], "nowhere: no reward model"),
        (["algo.generation.response_tokens=500"], "expected at most 128, the positions of algo.language_model"),
        (["algo.mails_per_iteration=15"], "algo.mails_per_iteration: expected a multiple"),
        (["env=offers"], "do not fit"),
    ],
)
def test_what_can_not_be_used_is_one_line(kept, tmp_path, overrides, said):
    settings = (
        []
        if overrides == ["env=offers"]
        else [x for x in SMALL[1:] if "algo/language_model=local" not in overrides or "algo.language_model." not in x]
    )
    done = script_runner.run(tmp_path, "train", "algo=ppo_kl", *settings, f"algo.model_cache={kept}", *overrides)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", ["reward_model_folder", "reference_folder"])
def test_a_given_folder_without_a_model_is_refused_before_anything_trains(tmp_path, key):
    cache = tmp_path / "cache"
    done = script_runner.run(tmp_path, "train", *SMALL, f"algo.model_cache={cache}", f"algo.{key}=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr and not cache.exists()
