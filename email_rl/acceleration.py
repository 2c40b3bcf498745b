"""The performance modes of the text algorithms, which rlcore.backends.accelerate applies to language models.

All modes give the same results up to rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from email_rl.models.generation import CachedDecoder
from email_rl.models.policy import LanguageModelPolicy
from email_rl.training.ppo import LanguageModelPPO
from rlcore.backends import cuda_graphs
from rlcore.backends.accelerate import apply_mode, replace_method
from rlcore.backends.compilation import compile_function


@apply_mode.register
def apply_mode_to_language_model_ppo(algorithm: LanguageModelPPO, mode: str) -> None:
    """Compile or record the gradient of a micro-batch; record token statistics and the generation of mails."""
    algorithm.prepare_model = partial(accelerate_model, mode=mode)
    if algorithm.has_models:  # a resumed run has its models; other runs load them later
        accelerate_model(algorithm.reference, mode)
        accelerate_model(algorithm.policy, mode)
    if mode == "compile":
        accumulate_gradient = compile_function(algorithm.accumulate_gradient, dynamic=None)  # lengths differ
        replace_method(algorithm, "accumulate_gradient", accumulate_gradient)
    # Checkpointing keeps the state of a random stream, which can't be recorded.
    if mode == "cudagraph" and not algorithm.gradient_checkpointing:
        accumulate_gradient = cuda_graphs.record(algorithm.accumulate_gradient, algorithm.device)
        replace_method(algorithm, "accumulate_gradient", accumulate_gradient)
        algorithm.forward_no_grad = cuda_graphs.record(algorithm.forward_no_grad, algorithm.device)


def accelerate_model(model: LanguageModelPolicy, mode: str) -> None:
    """Let a policy generate by recorded decoders, and fuse its activations."""
    if mode == "cudagraph":
        model.make_decoder = RecordedDecoders()
    if mode != "eager" and model.device.type == "cuda":
        fuse_gelu(model.language_model)


class RecordedDecoders:
    """Makes decoders whose steps are recorded on a GPU.

    It keeps the last decoder for calls of the same shapes and settings. A copy keeps none, because a recording belongs
    to one model.
    """

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.decoder: CachedDecoder | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedDecoders:
        return RecordedDecoders()

    def __call__(
        self, language_model: PreTrainedModel, prompt: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float
    ) -> CachedDecoder:
        """Return a decoder for prompts [P, Q] and uniforms [R, B]."""
        key = (prompt.shape, u.shape, temperature, top_k, top_p, torch.is_autocast_enabled(prompt.device.type))
        if self.decoder is None or self.key != key:
            self.decoder = None  # free its memory before another decoder takes as much
            decoder = CachedDecoder(language_model, prompt.device, temperature, top_k, top_p)
            replace_method(decoder, "prefill", cuda_graphs.record(decoder.prefill, prompt.device))
            replace_method(decoder, "decode_step", cuda_graphs.record(decoder.decode_step, prompt.device))
            self.key, self.decoder = key, decoder
        return self.decoder


def fuse_gelu(model: nn.Module) -> None:
    """Make a model compute GELU's tanh form by one kernel, where transformers uses eight."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU("tanh"))
