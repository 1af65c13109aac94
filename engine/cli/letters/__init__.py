"""Dead letters on the command line: the commands, and how letters look in a terminal."""
