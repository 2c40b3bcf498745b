"""Time PPO on mails at GPT-2's size, with our sampling and with transformers': seconds, tokens, memory.

Usage:

    python scripts/bench.py speed/text_generation
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from email_rl.models.outcome_classifier import OutcomeClassifier
from email_rl.models.policy import LanguageModelPolicy
from email_rl.training.ppo import LanguageModelPPO
from rlcore.backends.accelerate import accelerate, replace_method
from rlcore.backends.cuda_graphs import WARM_UP_CALLS
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.timing import peak_memory, timed


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    algo: partial[LanguageModelPPO],
    shape: dict,
    known_words: int,
    outcome_values: list,
    execution: str,
    repeats: int,
) -> dict:
    """Time whole iterations with random weights, by our sampling and by transformers'; print and return medians.

    All else is the same: weights, precision, scoring, reading by policy and reference, update.
    """
    torch.manual_seed(seed)
    config = GPT2Config(**shape, bos_token_id=None, eos_token_id=shape["vocab_size"] - 1)
    agent = made_agent(algo, config, device, seed, known_words, outcome_values)
    accelerate(agent, execution)
    samplers = (agent.policy.sample_responses, transformers_sampler(agent, config))
    for sample in samplers:  # on a GPU the first calls load kernels; compilation and recording happen here
        for _ in range(WARM_UP_CALLS + 1 if device.type == "cuda" or execution != "eager" else 0):
            iteration(agent, sample)
    taken = [tuple(iteration(agent, sample) for sample in samplers) for _ in range(repeats)]
    (sampling, collected, update), (theirs, *_) = ([median(x) for x in zip(*each)] for each in zip(*taken))
    whole, with_theirs = (median(read + learnt for _, read, learnt in each) for each in zip(*taken))
    seconds = {
        "sampling, ours": sampling,
        "sampling, transformers' generate": theirs,
        "sample, score, read": collected,
        "update": update,
        "iteration": whole,
        "iteration, transformers' generate": with_theirs,
    }
    peak_gib = peak_memory(device) / 2**10
    mails = agent.steps_per_iteration
    tokens = mails * agent.policy.response_tokens
    show(seconds_table(seconds, agent, tokens, peak_gib))
    ratios = {"sampling_ratio": theirs / sampling, "iteration_ratio": with_theirs / whole}
    print(
        f"an iteration is {ratios['iteration_ratio']:.2f} × as fast as with transformers' generate, "
        f"sampling alone {ratios['sampling_ratio']:.2f} ×"
    )
    return {"seconds": seconds, "tokens": tokens, "mails": mails, "peak_gib": peak_gib, **ratios}


def made_agent(
    algo: partial[LanguageModelPPO],
    config: GPT2Config,
    device: torch.device,
    seed: int,
    known_words: int,
    outcome_values: list,
) -> LanguageModelPPO:
    """Return PPO with models of random weights, for random prompts.

    Each token is one of the reward model's `known_words`, so that a token is one piece there too.
    """
    settings = algo.keywords
    words = [f"w{i % known_words}" + " " * (i // known_words) for i in range(config.vocab_size - 1)]
    words.append("[end]")
    generation = {key: value for key, value in settings["generation"].items() if key != "fitted_share"}
    ids = torch.randint(known_words, (settings["mails_per_iteration"], generation["prompt_tokens"]))
    contexts = [" ".join(words[i] for i in row) for row in ids.tolist()]
    known = words[:known_words]
    model, tokenizer = settings["encoder"].build(known, known)
    model.config.reads_context = True
    dataset = SimpleNamespace(
        device=device,
        outcome_values=torch.tensor(outcome_values, dtype=torch.float64),
        train=SimpleNamespace(contexts=contexts),
    )
    agent = algo(dataset, seed)
    agent.set_models(
        LanguageModelPolicy(GPT2LMHeadModel(config), tokenizer_of(words), **generation).to(device),
        OutcomeClassifier(model, tokenizer, device, settings["inference_batch_size"]),
    )
    return agent


def transformers_sampler(agent: LanguageModelPPO, config: GPT2Config) -> Callable[..., Tensor]:
    """Return transformers' sampling in the place of the policy's `sample_responses`, with the same weights."""
    samples = agent.advantage_estimator.samples_per_prompt
    # transformers wraps Module.to in a way that loses `self`
    plain_lm = GPT2LMHeadModel(config).to(agent.device).eval()  # type: ignore[arg-type]
    # the same tensors, in transformers' own modules
    plain_lm.load_state_dict(agent.policy.language_model.state_dict(), assign=True)

    def sample(prompt: Tensor, mask: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
        kind = agent.device.type
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind)):  # its casts of weights kept
            found = plain_lm.generate(
                input_ids=prompt,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                max_new_tokens=len(u),
                min_new_tokens=len(u),
                num_return_sequences=samples,
                pad_token_id=agent.policy.stop_token,
            )
        return found[:, prompt.shape[1] :]

    return sample


def iteration(agent: LanguageModelPPO, sample: Callable[..., Tensor]) -> tuple[float, float, float]:
    """Return the seconds of sampling, of the whole rollout (sampling included), and of the update."""
    sampling = []

    def watched(*given, **how) -> Tensor:
        taken, response = timed(lambda: sample(*given, **how))
        sampling.append(taken)
        return response

    replace_method(agent.policy, "sample_responses", watched)
    collected, rollout = timed(agent.collect)
    return sum(sampling), collected, timed(lambda: agent.update(agent.compute_advantages(rollout)))[0]


def seconds_table(seconds: dict[str, float], agent: LanguageModelPPO, tokens: int, peak_gib: float) -> Table:
    """Lay out the seconds of the parts of an iteration, and the tokens and mails a second."""
    mails, policy = agent.steps_per_iteration, agent.policy
    title = (
        f"{sum(x.numel() for x in policy.language_model.parameters()) / 1e6:.0f}M parameters, {mails} mails of "
        f"{policy.prompt_tokens} + {policy.response_tokens} tokens; peak memory {peak_gib:.1f} GiB"
    )
    lines = [
        [name, f"{spent:.3g}", f"{tokens / spent:,.0f}", f"{mails / spent:,.3g}"] for name, spent in seconds.items()
    ]
    return text_table(title, ["", "seconds", "tokens written a second", "mails a second"], lines)


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words, the last of which ends a mail."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[-1])
