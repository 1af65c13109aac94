"""Text of others, made fit for a line of ours."""


def one_line(text: str, length_max: int = 200) -> str:
    """The text in one line: anything that cannot be printed is a space, and what is too long is cut off."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= length_max else f"{line[: length_max - 3]}..."
