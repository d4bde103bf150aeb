"""Helm's own engine, as a process: values in, Kubernetes objects or a refusal out.

The engine is Helm's Go library. It gets a process of its own, so that Go's runtime and its signal
handlers stay out of the one that runs the tests. `python -m tests.deploy.helm` is that process: a
line of JSON for each question, a line of JSON for each answer. No cluster and no network are there.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Final, Self

import yaml

from tests.deploy.places import CHART, ROOT, merged

RELEASE: Final = "demo"
NAMESPACE: Final = "builds"
IMAGE: Final = {"image": {"repository": "registry.example.com/holdfast"}}
_END_TIMEOUT_SECONDS: Final = 10

Object = dict[str, Any]


class Refused(Exception):
    """Helm would not install with these values; the message is what the user reads."""


class Helm:
    """One engine for many questions. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.helm"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=_END_TIMEOUT_SECONDS)

    def files(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return each template with what becomes of it. Raises Refused."""
        answer = self._ask({"values": values})
        if "refused" in answer:
            raise Refused(answer["refused"])
        prefix = "holdfast/templates/"
        return {name.removeprefix(prefix): text for name, text in answer["files"].items()}

    def objects(self, values: Mapping[str, Any] | None = None) -> list[Object]:
        """Return the objects made of `values` over the defaults and an image. Raises Refused."""
        files = self.files(merged(IMAGE, values or {}))
        return [
            document
            for name, text in files.items()
            if name.endswith(".yaml")
            for document in yaml.safe_load_all(text)
            if document is not None
        ]

    def one(
        self, kind: str, values: Mapping[str, Any] | None = None, *, name: str | None = None
    ) -> Object:
        """Return the one object of a kind (and of a name). Raises Refused."""
        found = [
            document
            for document in self.objects(values)
            if document["kind"] == kind and name in (None, document["metadata"]["name"])
        ]
        assert len(found) == 1, [each["metadata"]["name"] for each in found]
        return found[0]

    def lint(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what `helm lint --strict` has to say, severities from 1 (info) to 3."""
        messages: list[dict[str, Any]] = self._ask({"values": values, "lint": True})["messages"]
        return messages

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the engine has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def _answers(questions: IO[str]) -> Iterator[dict[str, Any]]:
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        for line in questions:
            question = json.loads(line)
            values = question["values"]
            if question.get("lint"):
                report = helm_python.lint(CHART, values, strict=True)
                yield {"messages": report["messages"]}
                continue
            try:
                chart.validate_schema(values)
                yield {"files": chart.render(values, name=RELEASE, namespace=NAMESPACE)}
            except helm_python.HelmError as refusal:
                yield {"refused": str(refusal)}


if __name__ == "__main__":
    for _answer in _answers(sys.stdin):
        print(json.dumps(_answer), flush=True)  # noqa: T201 - this is how it answers
