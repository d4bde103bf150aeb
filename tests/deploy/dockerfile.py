"""A Dockerfile as a list of stages, each a list of instructions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word, and what follows it with continued lines joined."""

    word: str
    rest: str

    @property
    def form(self) -> list[str]:
        """The exec form, which is a JSON list."""
        words: list[str] = json.loads(self.rest)
        return words


@dataclass(frozen=True, slots=True)
class Stage:
    """What follows one FROM."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def instructions_text(self) -> str:
        """All of them, a line each."""
        return "\n".join(f"{one.word} {one.rest}" for one in self.instructions)

    def all(self, word: str) -> list[Instruction]:
        """Return every instruction with that word."""
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        """Return the one that counts: of most instructions, the last."""
        return self.all(word)[-1]


def instructions(path: Path) -> Iterator[Instruction]:
    """Read the instructions of a Dockerfile, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Instruction(word.upper(), rest.strip())


def stages(path: Path) -> list[Stage]:
    """Read the stages of a Dockerfile; arguments before the first FROM are put in place."""
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for one in instructions(path):
        if one.word == "FROM":
            base, _, name = one.rest.partition(" AS ")
            for argument, value in arguments.items():
                base = base.replace(f"${{{argument}}}", value)
            found.append(Stage(base, name or None))
        elif found:
            found[-1].instructions.append(one)
        else:
            argument, _, value = one.rest.partition("=")
            arguments[argument] = value
    return found
