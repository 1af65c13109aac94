"""Pure decisions: no clock, no random, no input or output."""
