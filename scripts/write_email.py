"""Let a trained policy write: python scripts/write_email.py checkpoint=PATH, with interactive=true or contexts=FILE.csv out=FILE.csv."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import hydra
from omegaconf import DictConfig, OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from email_rl.inference import Writer, read_contexts, save  # noqa: E402
from rlcore import checkpoint  # noqa: E402
from scripts.cli import choose_device, fitting, guarded, launch  # noqa: E402


@hydra.main(config_path="../conf", config_name="write_email", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    check(cfg)
    rows = read_contexts(cfg.contexts) if cfg.contexts else [{"context": context} for context in cfg.built_in]
    device, state = choose_device(cfg.device, cfg.threads, cfg.matmul), checkpoint.load(cfg.checkpoint)
    with fitting(cfg.checkpoint):
        writer = Writer.load(cfg.checkpoint, state, device, cfg.sampling.batch_size, cfg.seed)
    sampling = OmegaConf.to_container(cfg.sampling)
    if cfg.interactive:
        for context in asked():
            show(writer, [context], cfg.mails, sampling)
        return
    contexts = [row["context"] for row in rows]
    if not cfg.out:
        show(writer, contexts, cfg.mails, sampling)
        return
    doubt(writer, contexts)
    written = writer.write(contexts, cfg.mails, **sampling)
    save(cfg.out, rows, written)
    print(f"{cfg.out}: {len(written):,} mails; mean reward {sum(mail.reward for mail in written) / len(written):.2f}")


def check(cfg: DictConfig) -> None:
    """Refuse what can't be done before anything is loaded."""
    sampling = cfg.sampling
    if cfg.checkpoint is None:
        raise ValueError("checkpoint: expected the path of a policy that algo=ppo_kl trained, as in checkpoint=outputs/…/checkpoint.pt")
    if cfg.interactive and (cfg.contexts or cfg.out):
        raise ValueError("interactive: expected no contexts and no out beside it: it reads from the terminal and prints")
    if cfg.mails < 1 or sampling.batch_size < 1:
        raise ValueError(f"mails, sampling.batch_size: expected at least 1, got {cfg.mails}, {sampling.batch_size}")
    if sampling.temperature <= 0 or sampling.top_k < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError("sampling: expected temperature > 0, top_k of at least 0 (all) and top_p in (0, 1], got "
                         f"{sampling.temperature}, {sampling.top_k}, {sampling.top_p}")
    if cfg.out and not Path(cfg.out).absolute().parent.is_dir():
        raise ValueError(f"out: {Path(cfg.out).absolute().parent}: no such folder")
    if cfg.out and cfg.contexts and Path(cfg.out).resolve() == Path(cfg.contexts).resolve():
        raise ValueError(f"out: {cfg.out} is the file of contexts; expected another")


def asked() -> Iterator[str]:
    """Read contexts from the terminal until an empty line."""
    print("a context a line, as the policy was trained on; an empty line ends")
    while True:
        try:
            context = input("context: ").strip()
        except EOFError:
            return
        if not context:
            return
        yield context


def show(writer: Writer, contexts: list[str], mails: int, sampling: dict) -> None:
    """Write and print."""
    doubt(writer, contexts)
    for mail in writer.write(contexts, mails, **sampling):
        print(mail.shown())


def doubt(writer: Writer, contexts: list[str]) -> None:
    """Say which contexts the policy can't read whole."""
    cut = writer.cut(contexts)
    if cut:
        print(f"warning: {len(cut)} of {len(contexts)} contexts are longer than the {writer.policy.query_tokens} tokens that the "
              f"policy reads, and lose their beginning; the first: '{contexts[cut[0]][:60]}'", file=sys.stderr)


if __name__ == "__main__":
    launch(main)
