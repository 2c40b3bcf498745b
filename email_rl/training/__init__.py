"""SFT, reward model and PPO of mails. Importing `acceleration` registers how they run in a performance mode."""

from email_rl import acceleration as acceleration
