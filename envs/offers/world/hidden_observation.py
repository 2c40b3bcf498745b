"""Write and read observations that tell no more than a shop knows: no habit, fatigue, expectation or churn."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, CustomerState, one_hot
from envs.offers.world.history import History, PassedWeek, column_names, next_columns
from envs.offers.world.observation import ObservationCodec, ViewSetting
from envs.offers.world.season_counts import SeasonCounts


class HidingCodec(ObservationCodec):
    """Base of the ObservationCodecs that hide the state; a memory [N, M] takes its place.

    A memory begins with 1 for who has opted out, which is all that a shop knows of the status: a customer who churned
    falls silent, can still be sent to, and costs the message. Then come the sums of the season
    (envs/offers/world/season_counts.py), scaled by `count_scale` where they are shown, and what a subclass adds.
    """

    hides_state = True
    num_writable = 0
    num_statuses = 2  # subscribed, unsubscribed
    own_outlives_seasons = False  # whether the subclass's own numbers stay within training's range in later seasons

    def __init__(self, setting: ViewSetting, *, count_scale: float):
        self.catalogue = setting.world.catalogue
        self.counts = SeasonCounts(self.catalogue, scale=count_scale)
        self.num_own_numbers = len(self.own_names)  #: the subclass's own numbers in a memory
        self.num_dynamics = len(self.dynamics_names)
        self.memory_dim = 1 + len(self.counts) + self.num_own_numbers
        super().__init__(setting)

    # ── what a subclass adds ────────────────────────────────────────────────────────────────────────────────────────
    @property
    def own_names(self) -> list[str]:
        """Names of the columns that the subclass adds."""
        raise NotImplementedError

    def start_own(self, features: Tensor) -> Tensor:
        """Return the subclass's own numbers at the start of a season."""
        return features.new_zeros(len(features), self.num_own_numbers)

    def remember_own(self, own: Tensor, features: Tensor, passed: PassedWeek, opted_out: Tensor) -> Tensor:
        """Return the subclass's own numbers after a week; `opted_out` [N] is 1 for who had done so before it."""
        raise NotImplementedError

    def own_columns(self, own: Tensor) -> Tensor:
        """Lay out the subclass's own numbers as columns."""
        return own

    def own_without_contacts(self, columns: Tensor) -> Tensor:
        """Return the subclass's own columns as if nothing had been sent or redeemed."""
        raise NotImplementedError

    def with_dynamics(self, obs: Tensor, state: CustomerState) -> Tensor:
        """Raise NotImplementedError: what was seen of a season can't be written for other states."""
        raise NotImplementedError

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _split(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split a memory [N, M] into opted out [N], sums [N, K] and the subclass's own numbers."""
        opted_out, sums, own = memory.split([1, len(self.counts), self.num_own_numbers], 1)
        return opted_out[:, 0], sums, own

    def start_memory(self, features: Tensor) -> Tensor:
        """Return the memory [N, M] of customers at the start of a season, all of them subscribed."""
        nobody = features.new_zeros(len(features), 1)
        return torch.cat((nobody, self.counts.start(features), self.start_own(features)), 1)

    def remember(self, memory: Tensor, features: Tensor, passed: PassedWeek) -> Tensor:
        """Return the memory [N, M] after a week; the states are not read."""
        opted_out, sums, own = self._split(memory)
        own = self.remember_own(own, features, passed, opted_out)
        opted_out = torch.maximum(opted_out, passed.seen.opted_out.to(opted_out))
        return torch.cat((opted_out[:, None], self.counts.after(sums, passed.seen), own), 1)

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory [N, M] with the sums of the season at 0; opt-outs and the subclass's own numbers stay."""
        return self._next_season(memory, own_stays=True)

    def season_anew(self, memory: Tensor) -> Tensor:
        """Return the memory [N, M] as at the first season's start, but for opt-outs and `own_outlives_seasons`."""
        return self._next_season(memory, own_stays=self.own_outlives_seasons)

    def _next_season(self, memory: Tensor, own_stays: bool) -> Tensor:
        opted_out, sums, own = self._split(memory)
        own = own if own_stays else self.start_own(memory)
        return torch.cat((opted_out[:, None], self.counts.start(sums), own), 1)

    def subscribed(self, state: CustomerState, memory: Tensor) -> Tensor:
        """Customers who have not opted out, bool [N], those who churned among them."""
        return memory[:, 0] == 0

    # ── columns ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def encode_dynamics(self, state: CustomerState, memory: Tensor) -> list[Tensor]:
        """Write the columns of the subclass, then those of the sums; the state is not read."""
        _, sums, own = self._split(memory)
        return [self.own_columns(own), self.counts.columns(sums)]

    def encode_status(self, state: CustomerState, memory: Tensor) -> Tensor:
        """Write the columns subscribed and unsubscribed."""
        return one_hot(memory[:, 0].long(), self.num_statuses)

    @property
    def dynamics_names(self) -> list[str]:
        """Names of the columns in the place of the state."""
        return [*self.own_names, *self.counts.names]

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read what is known of the state, int64 [B] each, out of observations [B, D]: opt-outs, else zeros."""
        status = self.decode_status(obs)
        hidden = torch.zeros_like(status)
        return CustomerState(hidden, hidden, hidden, status)

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Return observations [B, D] as if the customers were subscribed and nothing had been sent or redeemed."""
        own, sums = obs[:, self.dynamics].split([self.num_own_numbers, len(self.counts)], 1)
        obs = obs.clone()
        obs[:, self.dynamics] = torch.cat((self.own_without_contacts(own), self.counts.without_contacts(sums)), 1)
        obs[:, self.status.start + SUBSCRIBED] = 1.0
        obs[:, self.status.start + UNSUBSCRIBED] = 0.0
        return obs


class HistoryCodec(HidingCodec):
    """A HidingCodec with frequency and recency of the observable history (envs/offers/world/history.py).

    `half_lives`, in weeks, are those of the history's weights. Raises ValueError where one is not above 0.
    """

    shows = ("history", "counts")

    def __init__(self, setting: ViewSetting, *, half_lives: list[float], count_scale: float):
        if not half_lives or min(half_lives) <= 0:
            raise ValueError(f"env.observation.half_lives: expected weeks above 0, got {half_lives}")
        self.half_lives = half_lives
        super().__init__(setting, count_scale=count_scale)

    @property
    def own_names(self) -> list[str]:
        """Names of the columns of the history."""
        return column_names(self.half_lives)

    def remember_own(self, own: Tensor, features: Tensor, passed: PassedWeek, opted_out: Tensor) -> Tensor:
        """Return the columns of the history after a week."""
        seen = passed.seen
        entry = History.week(self.catalogue, seen.offer, seen.channel, seen.bought, seen.redeemed.to(own))
        return next_columns(own, entry, self.half_lives)

    def own_without_contacts(self, columns: Tensor) -> Tensor:
        """Return the columns of the history as if nothing had been sent or redeemed."""
        keep = [name.startswith(("weeks", "purchases", "last p")) for name in self.own_names]
        return columns * torch.tensor(keep, device=columns.device)
