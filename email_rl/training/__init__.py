"""SFT, reward model and PPO of mails. The import of `acceleration` registers how they run in a performance mode."""
from email_rl import acceleration
