"""Command lines of `slidelake` as pages and help texts show them, with file and line."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Languages of fenced blocks that hold a shell's lines.
SHELLS = {"", "sh", "bash", "shell", "console"}
FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(\S*)")
INDENTED = re.compile(r" {4,}(\$ )?slidelake ")
HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
INLINE = re.compile(r"(?<!`)`(slidelake(?:\s[^`]*)?)`(?!`)")
EXAMPLE = re.compile(r"^\s*(?:Examples?|or): (slidelake .*)$")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")
OPERATORS = set("();<>|&")
#: Words that may stand before the command.
WRAPPERS = {"$", "time", "nohup", "nice", "exec", "env", "sudo", "eval"}


@dataclass(frozen=True, kw_only=True)
class PageCommand:
    """The words after `slidelake` on a page.

    Attributes:
        page: path of the page from the root.
        line: number of its first line.
        words: the words; a shell's variable is 1, which is a text and a number.
        inline: whether it stands within a sentence, where it may be a mention of a command.
    """

    page: str
    line: int
    words: tuple[str, ...]
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: slidelake {shlex.join(self.words)}"


def commands_of(text: str, page: str) -> list[PageCommand]:
    """Return the command lines of a page in Markdown: of its blocks, and within sentences."""
    commands, lines = list[PageCommand](), text.split("\n")
    prose = list(lines)
    at, fence, shell = 0, "", False
    while at < len(lines):
        start, opened = at, FENCE.match(lines[at])
        if opened and (not fence or lines[at].strip().startswith(fence)):
            fence, shell = ("", False) if fence else (opened[1], opened[2] in SHELLS)
            prose[at] = ""
        elif fence or INDENTED.match(lines[at]):
            if shell or not fence:
                at, whole = _logical_line(lines, at)
                commands += [
                    PageCommand(page=page, line=start + 1, words=words)
                    for words in simple_commands(whole)
                ]
            prose[start : at + 1] = [""] * (at + 1 - start)
        at += 1
    commands += inline_commands("\n".join(prose), page)
    return sorted(commands, key=lambda command: command.line)


def _logical_line(lines: Sequence[str], at: int) -> tuple[int, str]:
    """Return a line joined with those that continue it, and the place of the last of them."""
    whole = without_comment(lines[at])
    while whole.endswith("\\") and at + 1 < len(lines):
        at += 1
        whole = whole[:-1] + " " + without_comment(lines[at])
    while "slidelake " in whole and _is_open(whole) and at + 1 < len(lines):
        at += 1
        whole += "\n" + lines[at]
    if heredoc := HEREDOC.search(whole):
        at += 1
        while at + 1 < len(lines) and lines[at].strip() != heredoc[1]:
            at += 1
        whole = whole[: heredoc.start()] + whole[heredoc.end() :]
    return at, whole


def _is_open(line: str) -> bool:
    """Return whether a quotation goes on in the next line."""
    try:
        shlex.split(line)
    except ValueError:
        return True
    return False


def without_comment(line: str) -> str:
    """Return a line of a shell without its comment.

    >>> without_comment("slidelake ingest 'my #1' scan.tif#2   # two slides")
    "slidelake ingest 'my #1' scan.tif#2"
    """
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip()
    return line.rstrip()


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the words after `slidelake` of each such command in a line of a shell.

    >>> list(simple_commands("RAY_ADDRESS=auto slidelake info LAKE --json | jq . > out.json"))
    [('info', 'LAKE', '--json')]
    >>> list(simple_commands("kubectl get secret slidelake -o json && slidelake ls $LAKE &"))
    [('ls', '1')]
    """
    if "slidelake " not in line:  # a drawing may hold any sign
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if set(word) <= OPERATORS:
            if set(word) <= {"<", ">"} or word == ">&":
                words = words[:-1] if words and words[-1].isdecimal() else words
                skip = True
                continue
            yield from _own_words(words)
            words = []
        elif skip:
            skip = False
        else:
            words.append(word)


def _own_words(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the words after `slidelake`, if a simple command is one of its."""
    for word in words:
        for inner in SUBSTITUTION.findall(word):
            yield from simple_commands(inner)
    rest = list(words)
    while rest and (rest[0] in WRAPPERS or ASSIGNMENT.fullmatch(rest[0])):
        rest.pop(0)
    if rest[:3] == ["python", "-m", "slidelake"]:
        rest = rest[2:]
    if rest and rest[0] == "slidelake" and len(rest) > 1:
        yield tuple("1" if VARIABLE.fullmatch(word) else word for word in rest[1:])


def inline_commands(text: str, page: str) -> Iterator[PageCommand]:
    """Yield the commands between backticks; brackets of a synopsis are left out.

    >>> [str(one) for one in inline_commands("`slidelake submit [--address URL]\\n-- ...`", "a.md")]
    ['a.md:1: slidelake submit --address URL --']
    """
    for span in INLINE.finditer(text):
        words = tuple(
            word.strip("[]")
            for word in _split(" ".join(span[1].split()))[1:]
            if word not in ("...", "\N{HORIZONTAL ELLIPSIS}")
        )
        if words:
            line = text.count("\n", 0, span.start()) + 1
            yield PageCommand(page=page, line=line, words=words, inline=True)


def _split(text: str) -> list[str]:
    """Return the words of a span; at blanks if a quotation in it has no end."""
    return text.split() if _is_open(text) else shlex.split(text)


def help_commands(help_text: str, page: str) -> Iterator[PageCommand]:
    """Yield the examples of a command's help, each up to a blank line or the next example."""
    lines = help_text.split("\n")
    for at, line in enumerate(lines):
        if example := EXAMPLE.match(line):
            more = []
            for other in lines[at + 1 :]:
                if not other.strip() or EXAMPLE.match(other):
                    break
                more.append(other.strip())
            for words in simple_commands(" ".join([example[1], *more])):
                yield PageCommand(page=page, line=at + 1, words=words)
    yield from inline_commands(help_text, page)
