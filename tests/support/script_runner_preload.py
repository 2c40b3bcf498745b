"""What the scripts import: tests/support/script_runner.py forks from a process that has done so."""
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # no hub, and one thread: read when imported
sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AutoModelForCausalLM, GPT2LMHeadModel  # noqa: E402, F401

import email_rl.evaluation.policy_evaluation  # noqa: E402, F401
import email_rl.training.ppo  # noqa: E402, F401
import envs.offers.constraints.ledger  # noqa: E402, F401
import envs.offers.evaluation.evaluator  # noqa: E402, F401
import envs.sequential  # noqa: E402, F401
import rlcore.ppo  # noqa: E402, F401
import scripts.cli  # noqa: E402, F401
