"""Score customers by a trained policy: the one way for the evaluation, for an exported policy and for a weekly plan."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CustomerState
from envs.offers.world.observation import ObservationCodec
from rlcore.algorithm import Policy, ValuePolicy
from rlcore.networks import Actor, combine_rows


def encode_context(
    codec: ObservationCodec, features: Tensor, state: CustomerState, options: ContactOptions, week: int | Tensor
) -> Tensor:
    """Return the contexts [N, D] of customers with features [N, F] and options, which have what the view remembers."""
    assert options.memory is not None  # the options of a market have it
    return codec.encode_context(options.with_caps_left(features), state, options.memory, week)


def expected_spend(catalogue: Catalogue, redeem_probability: Tensor) -> Tensor:
    """Return the expected spend of every flat action [N, P], from the probabilities of redeeming [N, O+1, C]."""
    offer, channel = (torch.arange(n, device=redeem_probability.device) for n in catalogue.nvec)
    return catalogue.spend(offer[:, None], channel, redeem_probability).flatten(1)


def preferences(policy: Policy, obs: Tensor, action_mask: Tensor, price: Tensor, spend: Tensor) -> Tensor:
    """Return a policy's preference for each flat action, [B, P], −inf where masked.

    Of a policy that observes the price in `obs` [B, D] this is its logits. A ValuePolicy's action values are before the
    price of the action's own spend: its preference is the exact knapsack's Lagrangian choice, value less price·spend.
    The price that clears the week's budget is therefore the price that the values were computed for.
    """
    if isinstance(policy, ValuePolicy):
        preference = policy.action_values(obs, action_mask) - price * spend
    else:
        preference = policy.distribution(obs, action_mask).logits
    return preference.masked_fill(~action_mask, -torch.inf)


def grid_preferences(
    policy: Policy,
    codec: ObservationCodec,
    context: Tensor,
    action_mask: Tensor,
    spend: Tensor,
    prices: Tensor,
    drift: Tensor,
) -> Tensor:
    """Return `preferences` at prices [G] of a weekly drift [G], price by price, [G, N, P]."""
    encoded_prices = codec.encode_price(prices, drift)
    return torch.stack(
        [
            preferences(policy, torch.cat((context, encoded.expand(len(context), -1)), -1), action_mask, price, spend)
            for price, encoded in zip(prices, encoded_prices)
        ]
    )


def grid_preferences_at_once(
    policy: Policy,
    codec: ObservationCodec,
    context: Tensor,
    action_mask: Tensor,
    spend: Tensor,
    prices: Tensor,
    drift: Tensor,
) -> Tensor:
    """Return the same without a loop, so that the number of prices can stay open in a graph.

    An Actor multiplies the context once for all prices; the sum of its first layer is then rounded in another order,
    which the evaluation, whose results are kept bit by bit, does without.
    """
    if not policy.observes_price:
        nothing_paid = torch.zeros_like(spend)
        values = preferences(policy, context, action_mask, nothing_paid[:1, :1], nothing_paid)
        return values - prices[:, None, None] * spend
    encoded_prices = codec.encode_price(prices, drift)
    if isinstance(policy, Actor):
        logits = policy.logits_with_endings(context, encoded_prices)
        return logits.masked_fill(~action_mask, -torch.inf)
    return preferences(
        policy,
        combine_rows(context, encoded_prices).flatten(0, 1),
        action_mask.expand(prices.shape[0], -1, -1).flatten(0, 1),
        prices[:, None, None].expand(-1, context.shape[0], -1).flatten(0, 1),
        spend.expand(prices.shape[0], -1, -1).flatten(0, 1),
    ).unflatten(0, (prices.shape[0], context.shape[0]))
