"""Write mails by a trained policy.

Usage:

    python scripts/write_email.py checkpoint=PATH interactive=true
    python scripts/write_email.py checkpoint=PATH contexts=FILE.csv out=FILE.csv
    python scripts/write_email.py checkpoint=PATH contexts=FILE.csv out=FILE.csv draw_arms=true
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from email_rl.inference import (
    ARM,
    ARMS,
    MailGenerator,
    check_columns,
    draw_arms,
    generate_by_arm,
    read_contexts,
    save_mails,
    summarize,
)
from envs.configuration import CONF
from envs.range_checks import check_stored_ranges
from rlcore.runs import checkpoint
from scripts.shared.cli import choose_device, guarded, launch, to_dict
from scripts.shared.stored_runs import fitting

ENDS = ("quit", "exit", "q")  # lines that end interactive=true


@hydra.main(config_path=str(CONF), config_name="write_email", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    check_arguments(cfg)
    rows = read_contexts(cfg.contexts) if cfg.contexts else None
    if rows and cfg.out:
        check_columns(cfg.contexts, rows, cfg.draw_arms)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    state = checkpoint.load(cfg.checkpoint)
    check_stored_ranges(state["config"], CONF, cfg.checkpoint)
    arms = ARMS if cfg.draw_arms else ARMS[:1]
    with fitting(cfg.checkpoint):
        generators = {
            arm: MailGenerator.load(cfg.checkpoint, state, device, cfg.sampling.batch_size, cfg.seed, arm)
            for arm in arms
        }
    generator = generators[ARMS[0]]
    sampling = to_dict(cfg.sampling, resolve=False)
    warn_of_sampling(generator, sampling)
    rows = rows or [{"context": context} for context in generator.example_contexts]
    if cfg.interactive:
        for context in contexts_from_terminal():
            print_mails(generator, [context], cfg.mails_per_context, sampling)
        return
    contexts = [row["context"] for row in rows]
    if not cfg.out:
        print_mails(generator, contexts, cfg.mails_per_context, sampling)
        return
    warn_of_truncation(generator, contexts)
    if cfg.draw_arms:
        write_ab_test(cfg, generators, draw_arms(rows, cfg.seed, cfg.out), sampling)
        return
    mails = generator.generate(contexts, cfg.mails_per_context, **sampling)
    save_mails(cfg.out, rows, mails)
    print(f"{cfg.out}: {summarize(mails)}")


def check_arguments(cfg: DictConfig) -> None:
    """Raise ValueError for paths and modes that do not go together, before anything is loaded."""
    if cfg.checkpoint is None:
        raise ValueError(
            "checkpoint: expected the path of a policy that algo=ppo_kl trained, as in "
            "checkpoint=outputs/…/checkpoint.pt"
        )
    if cfg.interactive and (cfg.contexts or cfg.out):
        raise ValueError(
            "interactive: expected no contexts and no out beside it: it reads from the terminal and prints"
        )
    if cfg.draw_arms and not (cfg.contexts and cfg.out):
        raise ValueError("draw_arms: expected contexts=FILE.csv and out=FILE.csv beside it")
    if cfg.out and not Path(cfg.out).absolute().parent.is_dir():
        raise ValueError(f"out: {Path(cfg.out).absolute().parent}: no such folder")
    if cfg.out and cfg.contexts and Path(cfg.out).resolve() == Path(cfg.contexts).resolve():
        raise ValueError(f"out: {cfg.out} is the file of contexts; expected another")


def write_ab_test(
    cfg: DictConfig, generators: dict[str, MailGenerator], rows: list[dict[str, str]], sampling: dict
) -> None:
    """Write each row's mails by the row's arm, and print a summary of each arm."""
    mails = generate_by_arm(generators, rows, cfg.mails_per_context, sampling)
    save_mails(cfg.out, rows, mails)
    arm_of = [row[ARM] for row in rows for _ in range(cfg.mails_per_context)]
    for arm in generators:
        own = [mail for mail, of in zip(mails, arm_of) if of == arm]
        print(f"{cfg.out}: {arm}: {summarize(own) if own else 'no row was drawn'}")


def contexts_from_terminal() -> Iterator[str]:
    """Read contexts from the terminal until an empty line, or one that asks to end."""
    print("a context a line, as the policy was trained on; an empty line, quit, exit or q ends")
    while True:
        try:
            context = input("context: ").strip()
        except EOFError:
            return
        if not context or context.lower() in ENDS:
            return
        yield context


def print_mails(generator: MailGenerator, contexts: list[str], mails_per_context: int, sampling: dict) -> None:
    """Generate mails and print them, with their summary."""
    warn_of_truncation(generator, contexts)
    mails = generator.generate(contexts, mails_per_context, **sampling)
    for mail in mails:
        print(mail.to_text())
    print(summarize(mails))


def warn_of_sampling(generator: MailGenerator, sampling: dict) -> None:
    """Say where mails are drawn from another distribution than the one that the run's figures are of."""
    trained = generator.policy.temperature
    if (sampling["temperature"] or trained, sampling["top_k"], sampling["top_p"]) != (trained, 0, 1.0):
        print(
            f"sampling: not as in training (temperature {trained}, all tokens): the figures of the training run are "
            "not of these mails",
            file=sys.stderr,
        )


def warn_of_truncation(generator: MailGenerator, contexts: list[str]) -> None:
    """Warn of contexts that the policy can't read whole."""
    truncated = generator.truncated(contexts)
    if truncated:
        print(
            f"warning: {len(truncated)} of {len(contexts)} contexts are longer than the "
            f"{generator.policy.prompt_tokens} tokens that the "
            f"policy reads, and lose their beginning; the first: '{contexts[truncated[0]][:60]}'",
            file=sys.stderr,
        )


if __name__ == "__main__":
    launch(main)
