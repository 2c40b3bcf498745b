"""What the scripts import: tests/support/script_runner.py forks from a process that has done so."""

import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # no hub, and one thread: read when imported
sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import email_rl.evaluation.policy_evaluation
import email_rl.training.ppo
import envs.live.ledger.opening
import envs.offers.evaluation.evaluator
import envs.sequential
import rlcore.ppo
import scripts.shared.cli
import scripts.shared.results
import scripts.shared.stored_runs
