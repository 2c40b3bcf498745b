"""The offers world: catalogue, customers, how they respond and how their states change."""

from envs.offers.world.catalogue import ActionCodec, Catalogue
from envs.offers.world.customers import Customers, CustomerState, RewardConfig, World
from envs.offers.world.hidden_observation import HistoryCodec
from envs.offers.world.history import History, SeenWeek
from envs.offers.world.observation import ObservationCodec, StateCountsCodec
from envs.offers.world.response import Outcome, outcome, profit
from envs.offers.world.transition import transition

__all__ = [
    "ActionCodec",
    "Catalogue",
    "CustomerState",
    "Customers",
    "History",
    "HistoryCodec",
    "ObservationCodec",
    "Outcome",
    "RewardConfig",
    "SeenWeek",
    "StateCountsCodec",
    "World",
    "outcome",
    "profit",
    "transition",
]
