"""Writes the contract's reference page from the proto's comments: every RPC, message, field and enum.

`python -m tools.contract_page` writes the page; `--check` fails if the page differs from what the proto gives.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from tools.pages import write_or_check

ROOT = Path(__file__).parents[1]
PROTO = Path("fedmtl/v1/federation.proto")
PAGE = ROOT / "docs" / "reference" / "contract.md"

_NOTE = "<!-- Written by `make proto` from protos/{proto}. Change that, not this. -->"
_MAINTENANCE = re.compile(r"\s*The\s+next\s+available\s+field\s+number\s+is\s+\d+\.")
"""A note for those who change the proto; the page leaves it out."""

_Path: TypeAlias = tuple[int, ...]
_SYNTAX, _MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 12, 4, 5, 6, 2, 2, 2
"""Field numbers in a descriptor's path: of a file's syntax, messages, enums and services, then of a message's fields,
an enum's values and a service's methods."""

_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


def describe(protos: Path, proto: Path = PROTO) -> FileDescriptorProto:
    """Return a proto file's descriptor from protoc, comments included.

    Args:
        protos: the import root.
        proto: the file's path, relative to the import root.

    Raises:
        ValueError: protoc rejects the file; it has printed the reason.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "contract.binpb"
        if protoc.main(["protoc", f"-I{protos}", "--include_source_info", f"--descriptor_set_out={out}", str(proto)]):
            raise ValueError(f"{protos / proto} is no valid proto file")
        files = FileDescriptorSet()
        files.ParseFromString(out.read_bytes())
        return files.file[-1]


def render(file: FileDescriptorProto) -> str:
    """Return the page in Markdown."""
    return _Page(file).text()


class _Page:
    def __init__(self, file: FileDescriptorProto):
        self._file = file
        self._comments: dict[_Path, str] = {}
        for location in file.source_code_info.location:
            detached = "\n\n".join(location.leading_detached_comments) if tuple(location.path) == (_SYNTAX,) else ""
            self._comments[tuple(location.path)] = (detached + location.leading_comments).rstrip()
        rpcs = [method.name for service in file.service for method in service.method]
        types = [*(message.name for message in file.message_type), *(enum.name for enum in file.enum_type)]
        self._anchors = {name: name.lower() for name in (*types, *rpcs)}
        self._anchors |= {value.name: enum.name.lower() for enum in file.enum_type for value in enum.value}

    def text(self) -> str:
        file = self._file
        parts = [
            _NOTE.format(proto=file.name),
            f"# The contract `{file.package}`",
            "This page is the reference of every call, message, field and enum between a FedMTL server and its "
            f"clients. It is written from the comments in [`protos/{file.name}`](../../protos/{file.name}). "
            "[`wire.md`](../wire.md) specifies the bytes inside the messages, and [`languages.md`](../languages.md) "
            "shows how to write a client.",
            self._contents(),
            self._prose((_SYNTAX,)).replace("\n# ", "\n## "),
        ]
        for number, service in enumerate(file.service):
            parts += self._service(service, (_SERVICE, number))
        parts.append("## Messages")
        for number, message in enumerate(file.message_type):
            parts += self._message(message, (_MESSAGE, number))
        parts.append("## Enums")
        for number, enum in enumerate(file.enum_type):
            parts += self._enum(enum, (_ENUM, number))
        return "\n\n".join(part for part in parts if part) + "\n"

    def _contents(self) -> str:
        file = self._file
        kinds: Sequence[tuple[str, Iterable[str]]] = (
            ("Calls", (method.name for service in file.service for method in service.method)),
            ("Messages", (message.name for message in file.message_type)),
            ("Enums", (enum.name for enum in file.enum_type)),
        )
        return "\n\n".join(f"**{kind}**: " + " · ".join(map(self._link, names)) for kind, names in kinds)

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> list[str]:
        parts = [f"## {service.name}", f"`{self._file.package}.{service.name}`", self._prose(path)]
        for number, method in enumerate(service.method):
            parts += [f"### {method.name}", self._signature(method), self._prose((*path, _METHOD, number))]
        return parts

    def _signature(self, method: MethodDescriptorProto) -> str:
        def side(type_name: str, is_stream: bool) -> str:
            return ("a stream of " if is_stream else "") + self._link(type_name.rpartition(".")[2])

        asked = side(method.input_type, method.client_streaming)
        return f"{asked} → {side(method.output_type, method.server_streaming)}"

    def _message(self, message: DescriptorProto, path: _Path) -> list[str]:
        parts = [f"### {message.name}", self._prose(path)]
        if not message.field:
            return [*parts, "No fields."]
        maps = {one.name: one for one in message.nested_type if one.options.map_entry}
        rows = []
        for number, field in enumerate(message.field):
            comment = self._cell((*path, _FIELD, number))
            if field.HasField("oneof_index") and not field.proto3_optional:
                comment = f"One of `{message.oneof_decl[field.oneof_index].name}`. {comment}"
            rows.append((str(field.number), f"`{field.name}`", self._type(field, maps), comment))
        return [*parts, _table(("number", "field", "type", "meaning"), rows)]

    def _type(self, field: FieldDescriptorProto, maps: Mapping[str, DescriptorProto]) -> str:
        name = field.type_name.rpartition(".")[2]
        if name in maps:
            key, value = maps[name].field
            return f"map of {self._type(key, {})} to {self._type(value, {})}"
        shown = self._link(name) if name else f"`{_SCALARS[field.type]}`"
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"repeated {shown}"
        return f"optional {shown}" if field.proto3_optional else shown

    def _enum(self, enum: EnumDescriptorProto, path: _Path) -> list[str]:
        rows = [
            (str(value.number), f"`{value.name}`", self._cell((*path, _VALUE, number)))
            for number, value in enumerate(enum.value)
        ]
        return [f"### {enum.name}", self._prose(path), _table(("number", "value", "meaning"), rows)]

    def _prose(self, path: _Path) -> str:
        """Return a comment as paragraphs and lists.

        Markdown needs a blank line before a list, and Python-Markdown an indentation of four for a list in a list.
        """
        lines: list[str] = []
        for line in _unindented(self._comments.get(path, "")):
            is_item = line.startswith("* ") or bool(re.match(r"\d+\. ", line))
            if is_item and lines and lines[-1] and not re.match(r"\* |\d+\. | ", lines[-1]):
                lines.append("")
            lines.append(" " * (len(line) - len(line.lstrip())) + line)
        return self._linked(_MAINTENANCE.sub("", "\n".join(lines)).strip())

    def _cell(self, path: _Path) -> str:
        """Return a comment as one line of a table, with `<br>` between paragraphs and before list items."""
        joined = ""
        for line in map(str.strip, _unindented(self._comments.get(path, ""))):
            if line.startswith("* "):
                joined = joined.removesuffix("<br><br>") + "<br>• " + line.removeprefix("* ")
            else:
                joined += " " + line if line else "<br><br>"
        return self._linked(joined.replace("|", "\\|").removesuffix("<br><br>").replace("<br> ", "<br>").strip())

    def _linked(self, text: str) -> str:
        return re.sub(r"`(\w+)`", lambda match: self._link(match[1]), text)

    def _link(self, name: str) -> str:
        return f"[`{name}`](#{self._anchors[name]})" if name in self._anchors else f"`{name}`"


def _unindented(comment: str) -> list[str]:
    """Return a comment's lines without the space between the slashes and the text."""
    return [line.removeprefix(" ").rstrip() for line in comment.splitlines()]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---:"] + ["---"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or check it with `--check`."""
    return write_or_check(
        arguments,
        module="tools.contract_page",
        purpose=__doc__ or "",
        page=PAGE,
        render=lambda: render(describe(ROOT / "protos")),
        target="proto",
    )


if __name__ == "__main__":
    sys.exit(main())
