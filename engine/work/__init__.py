"""What a partition handles and commits: its life, rows, backlog, open unit of work, intake, and the commit."""
