"""What a plan writes: its table and the sender's file, its page, and its summary in the terminal."""
