"""The graph of an exported policy: what decides, as ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from envs.live.decide import Decide, DecisionInputs, Scores
from envs.offers.env import OffersEnv
from envs.offers.policies.redemption_model import RedemptionModel
from rlcore.network_algorithm import NetworkAlgorithm

OPSET = 20  # of ONNX


def make_decide(env: OffersEnv, agent: NetworkAlgorithm, features: nn.Module) -> Decide:
    """Put together the policy of an algorithm and all that lies between columns and its preferences."""
    assert isinstance(agent.auxiliary, RedemptionModel)  # check_exportable sees to it
    networks = [agent.network, agent.auxiliary.net]
    return Decide(agent.policy, agent.auxiliary, env.codec, env.world.catalogue, features, networks).eval()


def to_onnx(decide: Decide, inputs: DecisionInputs, prices: Tensor, drift: float, notes: dict[str, str]) -> bytes:
    """Return an ONNX graph of any numbers of customers and prices; `notes` become its metadata."""
    onnx = onnx_package()
    customers, grid = torch.export.Dim("customers"), torch.export.Dim("prices")
    shapes: dict[str, Any] = {name: {0: customers} for name in DecisionInputs._fields}
    shapes |= {"week": {}, "prices": {0: grid}, "drift": {}}
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            decide,
            (*inputs, prices, torch.tensor(drift)),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(shapes),
            output_names=list(Scores._fields),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, text in notes.items():
        model.metadata_props.add(key=key, value=text)
    out = io.BytesIO()
    onnx.save(model, out)
    return out.getvalue()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporter says of its own steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def onnx_package():
    """Import onnx, which an export needs; raise ValueError where it or onnxscript is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(
            f"policies are exported by onnx and onnxscript, which are not installed: pip install -e '.[live]' ({error})"
        ) from error
    return onnx
