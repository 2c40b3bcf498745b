"""One iteration of PPO on mails at GPT-2's size: seconds, tokens a second, peak memory; sampling beside transformers' own."""
from __future__ import annotations

import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from email_rl.policy import Policy
from email_rl.scorer import Scorer
from scripts.benchmarks.tables import table_of


def run(directory: Path, device: torch.device, seed: int, *, algo: Callable, shape: dict, values: list) -> dict:
    """Sample, score and update once, with random weights; print the table, return everything."""
    torch.manual_seed(seed)
    settings, words = algo.keywords, [f"w{i}" for i in range(shape["vocab_size"])]
    writing, mails, n = settings["writing"], settings["mails"], settings["advantage"].samples
    ids = torch.randint(len(words), (mails, writing["query_tokens"]))
    contexts = [" ".join(words[i] for i in row) for row in ids.tolist()]
    model, tokenizer = settings["rm"].build(words)
    model.config.reads_context = True
    env = SimpleNamespace(device=device, values=torch.tensor(values, dtype=torch.float64), train=SimpleNamespace(contexts=contexts))
    agent = algo(env, seed, "eager")
    config = GPT2Config(**shape, bos_token_id=None, eos_token_id=len(words) - 1)
    agent.take(Policy(GPT2LMHeadModel(config), named(words), **writing).to(device),
               Scorer(model, tokenizer, device, settings["score_batch"]))

    def seconds(function: Callable) -> tuple[float, object]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        found = function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started, found

    prompts, tokens = contexts[:mails // n], mails * writing["response_tokens"]
    query, mask = agent.policy.queries(prompts)
    whole = {"max_new_tokens": writing["response_tokens"], "min_new_tokens": writing["response_tokens"]}
    rows = {}
    for name, function in {
            "sampling, ours": lambda: agent.policy.write(prompts, n, agent.generator, **agent.sampling),
            "sampling, transformers' generate": lambda: agent.policy.lm.generate(
                input_ids=query, attention_mask=mask, do_sample=True, temperature=writing["temperature"], top_k=0, top_p=1.0,
                num_return_sequences=n, pad_token_id=agent.policy.stop, **whole)}.items():
        rows[name] = seconds(function)[0]
    rows["sample, score, read"], (rollout, *_) = seconds(agent.collect)
    rows["update"] = seconds(lambda: agent.update(agent.prepare(rollout)))[0]
    rows["iteration"] = rows["sample, score, read"] + rows["update"]
    peak = (torch.cuda.max_memory_allocated(device) if device.type == "cuda"
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**30
    table = table_of(f"{sum(x.numel() for x in agent.policy.lm.parameters()) / 1e6:.0f}M parameters, {mails} mails of "
                     f"{writing['query_tokens']} + {writing['response_tokens']} tokens; peak memory {peak:.1f} GiB",
                     ["", "seconds", "tokens written a second"])
    for name, taken in rows.items():
        table.add_row(name, f"{taken:.1f}", f"{tokens / taken:,.0f}")
    Console().print(table)
    ratio = rows["sampling, transformers' generate"] / rows["sampling, ours"]
    print(f"sampling: {ratio:.2f} × as fast as transformers' generate")
    return {"seconds": rows, "tokens": tokens, "peak_gib": peak, "sampling_ratio": ratio}


def named(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of these words, the last of which ends a mail."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[-1])
