"""The codec of actions: a round trip over every pair, for numbers and tensors, and no other code that does its work."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch

from envs.offers.world.catalogue import ActionCodec

ROOT = Path(__file__).resolve().parents[4]
HOME = Path("envs/offers/world/catalogue.py")
CODING = [
    r"(//|%|\*) *\(?(len\()?[\w.]*\bchannels\b",  # index % channels, offer * len(catalogue.channels)
    r"(//|%|\*) *[\w.]*\b(num_channels|nvec\[1\])",
    r"\[:, *(len\()?[\w.]*\bchannels\b\)?:\]",  # values[:, channels:]
    r"\bdivmod\([^)]*(channels|nvec)",
]


@pytest.fixture(params=[(6, 5), (2, 1), (3, 7)], ids=str)
def codec(request):
    return ActionCodec(*request.param)


def test_encode_and_decode_are_inverse_over_all_pairs_in_row_major_order(codec):
    pairs = list(product(range(codec.num_offers), range(codec.num_channels)))
    assert [codec.encode(*pair) for pair in pairs] == list(range(codec.num_actions))
    assert [codec.decode(index) for index in range(codec.num_actions)] == pairs


def test_tensors_of_any_shape_are_coded_as_numbers_are(codec):
    index = codec.every_action("cpu")
    offer, channel = codec.decode(index)
    assert list(zip(offer.tolist(), channel.tolist())) == [codec.decode(i) for i in index.tolist()]
    grid = torch.stack((index, index.flip(0)))
    assert torch.equal(codec.encode(*codec.decode(grid)), grid)
    assert codec.decode_action(grid).shape == (*grid.shape, 2)
    assert torch.equal(codec.encode_action(codec.decode_action(grid)), grid)


def test_contacts_are_all_indices_of_an_offer(codec):
    every = codec.every_action("cpu")
    contacts = every[codec.contacts]
    assert torch.equal(contacts, every[codec.offer_of(every) > 0])
    assert torch.equal(codec.is_contact(every), codec.offer_of(every) > 0)
    assert torch.equal(codec.nth_contact(torch.arange(len(contacts))), contacts)


def test_a_catalogue_keeps_its_codec(make_season):
    catalogue = make_season(1).world.catalogue
    assert catalogue.action_codec == catalogue.to("cpu", torch.float32).action_codec == ActionCodec(*catalogue.nvec)


@pytest.mark.slow
def test_no_other_file_of_the_product_codes_actions():
    """Coding and decoding written out by hand would have to be changed everywhere if the order of indices were."""
    files = [
        path for folder in ("crm_rl", "rlcore", "envs", "email_rl", "scripts") for path in (ROOT / folder).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}:{k}: {line.strip()}"
        for path in files
        if path.relative_to(ROOT) != HOME
        for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(re.search(pattern, line) for pattern in CODING)
    ]
    assert len(files) > 50 and not found
