"""`python -m agents.cli`."""

from agents.cli import main

if __name__ == "__main__":
    main()
