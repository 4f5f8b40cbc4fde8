"""python -m kerasdiff "a prompt": draws images and saves them."""

from __future__ import annotations

from kerasdiff.cli.options import PROGRAM


def main(prompts: list[str]) -> int:
    """Draws what the flags and the prompts say.

    Returns:
        0; 1 if images of a job are missing at its end; 130 after Ctrl-C and 143 after SIGTERM, where it tells of it.
    """
    # What draws is imported here: --help does not wait for it.
    from kerasdiff.cli.generate_command import draw

    return draw(prompts)


def run() -> None:
    """The console entry point."""
    PROGRAM.run(main)


if __name__ == "__main__":
    run()
