"""Write the parts of the documents that are made from the code (`make docs`)."""

from pathlib import Path

from tests.documents import folders, settings

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write each file and name it."""
    for path, text in {"docs/settings.md": settings.document(), folders.DOCUMENT: folders.document()}.items():
        (ROOT / path).write_text(text)
        print(path)


if __name__ == "__main__":
    main()
