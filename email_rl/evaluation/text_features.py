"""Features of any mail's text: a call to action, and a question.

The features use general English phrases, for mails of any market; the gold model (gold_model.py) has phrases of its
own.
"""

from __future__ import annotations

import re

from email_rl.data.gold_model import split_sentences

# Requests to a reader, as imperatives; verbs that are nouns as often (call, text, book) need an object.
ACTION = (
    r"(?:reply|respond|write back|get back to (?:me|us)|get in touch|reach out|contact (?:me|us)|"
    r"e-?mail (?:me|us)|"
    r"(?:call|text|ring|phone) (?:me|us|now|today|\+?\d)|give (?:me|us) a (?:call|ring)|drop (?:me|us) a|"
    r"(?:send|tell|show) (?:me|us)|let (?:me|us) know|"
    r"(?:book|schedule|reserve|request|arrange|claim|order|buy|grab) "
    r"(?:a|an|the|your|my|one|it|now|today)|(?:pick|choose|select|confirm|suggest) (?:a|an|the|your|one)|"
    r"sign up|register|subscribe|enrol|join (?:me|us|our|the)|rsvp|click|tap|scan|visit|download|install|"
    r"try (?:it|our|the|a)|"
    r"(?:start|begin|get) (?:your|a|the|it|started)|check (?:it )?out|find out|learn more|read more|"
    r"see (?:how|for yourself)|"
    r"watch (?:the|our|a|this)|take (?:a look|our)|have a look|save (?:the|your)|come (?:and|to|by))\b"
)
LEAD = (
    r"(?:(?:so|and|or|then|now|today|also|please|kindly|just|simply|do|feel free to|don't hesitate to|"
    r"you can|you may|"
    r"(?:can|could|would|will) you)[\s,]+)*"
)
CALL = re.compile(rf"^\W*(?:(?:if|to|for|when|in case)\b[^,]*,\s*)?{LEAD}{ACTION}", re.IGNORECASE)
INSIDE = re.compile(
    r"\b(?:please|kindly|feel free to|don't hesitate to|you can|(?:can|could|would|will) you)\s+" + LEAD + ACTION,
    re.IGNORECASE,
)


def call_to_action(text: str) -> str | None:
    """Return the first sentence that asks the reader to do something."""
    return next((said for said in split_sentences(text) if CALL.match(said) or INSIDE.search(said)), None)


def question(text: str) -> str | None:
    """Return the first sentence that ends in a question mark."""
    return next((said for said in split_sentences(text) if re.search(r"\?+!*[\"'”’)*_]*$", said)), None)
