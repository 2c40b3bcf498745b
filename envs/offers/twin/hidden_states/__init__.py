"""The structural twin of a log without states: likelihood by the filter of the hidden state, and what it identifies."""
