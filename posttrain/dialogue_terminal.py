"""Ask the models of a run one's own questions on the command line."""

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from posttrain.conclusions import list_words
from posttrain.dialogue import (
    FILE,
    Dialogue,
    Reply,
    describe_decoding,
    read_kept,
    show_controls,
)
from posttrain.preparation import require_own_name

COMMANDS = (
    "/new starts over, /sample draws the answers, /greedy returns to greedy decoding, "
    "/quit ends."
)
WIDTH = 78  # columns


def talk(dialogue: Dialogue, keep: bool) -> None:
    """Read questions and commands, line by line, and print the answers of all models.

    Args:
        dialogue: the conversation.
        keep: whether the answers are added to chat.json in the run's folder.

    Raises:
        ValueError: if the models cannot be loaded, or the answers could not be kept.
    """
    with suppress(ImportError):  # input() edits lines with it, where Python was built with it
        import readline  # noqa: F401

    if keep:
        require_own_name(dialogue.run.name, str(dialogue.run.folder.parent))
        read_kept(dialogue.run)  # which refuses a damaged file before any question
    dialogue.load()
    names = list_words(dialogue.names)
    _say(f"Type a question. {names} answer it, each in a conversation of its own. {COMMANDS}")
    if dialogue.without_rewards:
        _say(dialogue.without_rewards)
    with _terminal_taken():
        _follow_lines(dialogue, keep)


def _follow_lines(dialogue: Dialogue, keep: bool) -> None:
    """Read questions and commands until they end."""
    sample = False
    for line in _read_lines():
        if line == "/quit":
            return
        if line == "/new":
            dialogue.start_over()
            _say("A new conversation begins.")
        elif line in ("/sample", "/greedy"):
            sample = line == "/sample"
            _say("The answers are drawn from now on." if sample else "The answers are greedy.")
        elif line.startswith("/"):
            _say(f"There is no command {line.split()[0]}. {COMMANDS}")
        else:
            _answer(dialogue, line, sample, keep)


@contextmanager
def _terminal_taken() -> Iterator[None]:
    """Let Ctrl-C reach this process alone, since make would end at the second one.

    make would not notice Ctrl-Z, which therefore does nothing.
    """
    if not sys.stdin.isatty() or os.getpgrp() == os.getpid():
        yield
        return
    before = os.tcgetpgrp(sys.stdin.fileno())
    for number in (signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(sys.stdin.fileno(), os.getpid())
    try:
        yield
    finally:
        os.tcsetpgrp(sys.stdin.fileno(), before)


def _read_lines() -> Iterator[str]:
    """Read lines until they end. Ctrl-C begins a new line."""
    is_terminal = sys.stdin.isatty()
    if not is_terminal:  # bytes that are no text are refused as a question
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends.")
            continue
        if not is_terminal:
            print(show_controls(line))
        yield line.strip()


def _answer(dialogue: Dialogue, question: str, sample: bool, keep: bool) -> None:
    """Print the answers to a question, or why there are none."""
    replies = None
    try:
        replies = dialogue.ask(question, sample)
        _print_replies(replies)
        if keep:
            dialogue.keep(replies)
            _say(f"Kept in {dialogue.run.path(FILE)}.")
    except (ValueError, RuntimeError, OSError) as error:
        _say(str(error))
    except KeyboardInterrupt:
        print()
        if replies is None:
            _say("Interrupted. The conversations are as they were before this question.")
        else:
            _say("Interrupted. The conversations contain this question and its answers.")


def _print_replies(replies: list[Reply]) -> None:
    """Print answers one below the other."""
    _say(describe_decoding(replies))
    for reply in replies:
        remarks = reply.list_remarks()
        print(f"\n{reply.model}{f' ({remarks})' if remarks else ''}")
        for paragraph in show_controls(reply.answer).split("\n"):
            print(textwrap.fill(paragraph, WIDTH, initial_indent="  ", subsequent_indent="  "))
    print()


def _say(sentence: str) -> None:
    """Print a sentence, wrapped, in which nothing is a command to the terminal."""
    print(textwrap.fill(show_controls(sentence), WIDTH, break_on_hyphens=False))
