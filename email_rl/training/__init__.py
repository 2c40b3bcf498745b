"""SFT and PPO on mails. Importing `acceleration` registers their performance modes."""

from email_rl import acceleration as acceleration
