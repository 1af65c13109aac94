"""What flows through the system and the machinery that moves it; no business rules."""
