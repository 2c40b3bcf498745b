"""A made-up file of mails from a few templates, in which fixed sentences tell the outcome."""

from __future__ import annotations

import random

TELLING = {
    0: ("Don’t miss this offer.", "We are writing to introduce ourselves.", "Please answer for more details."),
    1: ("Thanks for your question — here is more.", "Happy to send you the details.", "You asked about prices."),
    2: ("Welcome aboard!", "Our team will set you up next week.", "Glad that the demo was useful."),
}
NEUTRAL = ("We work with many firms.", "Our tool saves time every week.", "Others like it — you might, too.")
ROLES = ("CFO", "marketing director", "head of procurement", "CTO")
INDUSTRIES = ("retail", "finance", "healthcare", "logistics", "education")
PRODUCTS = ("chatbot", "payment gateway", "analytics tool", "booking app")


def templated_rows(n=100, seed=0, shares=(0.66, 0.21, 0.13), shuffled=False):
    """Invent n rows; `shuffled` deals the outcomes out anew, so that nothing tells them."""
    rng = random.Random(seed)
    outcomes = [y for y, share in enumerate(shares) for _ in range(round(share * n))][:n]
    outcomes += [0] * (n - len(outcomes))
    rng.shuffle(outcomes)
    rows = []
    for y in outcomes:
        role, industry, product = rng.choice(ROLES), rng.choice(INDUSTRIES), rng.choice(PRODUCTS)
        body = [rng.choice(TELLING[y]), rng.choice(TELLING[y]), rng.choice(NEUTRAL)]
        rng.shuffle(body)
        opening = f"Hello, our {product} has helped {rng.randrange(9)} {industry} firms of your size."
        text = " ".join([opening, *dict.fromkeys(body), f"Regards from team {rng.randrange(50)}."])
        rows.append([f"Customer: {role} at a {industry} firm asked for a {product}.", text, str(y)])
    if shuffled:
        dealt = [row[2] for row in rows]
        rng.shuffle(dealt)
        rows = [[context, text, y] for (context, text, _), y in zip(rows, dealt)]
    return rows
