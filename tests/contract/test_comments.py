"""The contract's comments are its specification: nothing in the proto is without one, and each can be read alone."""

import re

import pytest

from tools.contract_page import PROTO, ROOT, describe

TEXT = (ROOT / "protos" / PROTO).read_text()
CONTRACT = describe(ROOT / "protos")
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD, _ONEOF = 4, 5, 6, 2, 2, 2, 8
"""Field numbers in a descriptor's path; see `SourceCodeInfo.Location.path`."""


def elements():
    """By name, the path of everything in the contract that has to have a comment."""
    paths = {}
    for i, message in enumerate(CONTRACT.message_type):
        paths[message.name] = (_MESSAGE, i)
        paths |= {f"{message.name}.{field.name}": (_MESSAGE, i, _FIELD, j) for j, field in enumerate(message.field)}
        in_proto = [one for one in message.oneof_decl if not is_of_an_optional_field(message, one)]
        paths |= {f"{message.name}.{one.name}": (_MESSAGE, i, _ONEOF, j) for j, one in enumerate(in_proto)}
    for i, enum in enumerate(CONTRACT.enum_type):
        paths[enum.name] = (_ENUM, i)
        paths |= {value.name: (_ENUM, i, _VALUE, j) for j, value in enumerate(enum.value)}
    for i, service in enumerate(CONTRACT.service):
        paths[service.name] = (_SERVICE, i)
        paths |= {method.name: (_SERVICE, i, _METHOD, j) for j, method in enumerate(service.method)}
    return paths


def is_of_an_optional_field(message, oneof):
    """Whether protoc has made a oneof for a field that is `optional`."""
    return any(field.proto3_optional and f"_{field.name}" == oneof.name for field in message.field)


ELEMENTS = elements()
NEXT_NUMBER = re.compile(r"The next available field number is (\d+)\.$")
COMMENTS = {tuple(one.path): one.leading_comments.strip() for one in CONTRACT.source_code_info.location}


def test_seven_lines_in_ten_are_comments():
    lines = [line.strip() for line in TEXT.splitlines() if line.strip()]
    comments = [line for line in lines if line.startswith("//")]
    assert len(comments) >= 0.7 * len(lines), f"{len(comments)} of {len(lines)} lines"


def test_no_line_is_longer_than_120_characters():
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []


def test_all_elements_are_looked_at():
    fields = sum(len(message.field) for message in CONTRACT.message_type)
    values = sum(len(enum.value) for enum in CONTRACT.enum_type)
    oneofs = 2  # the parts of both streams
    rpcs = sum(len(service.method) for service in CONTRACT.service)
    types = len(CONTRACT.message_type) + len(CONTRACT.enum_type) + len(CONTRACT.service)
    assert len(ELEMENTS) == fields + values + oneofs + rpcs + types > 300


@pytest.mark.parametrize("name", ELEMENTS)
def test_each_element_has_a_comment_that_is_a_sentence(name):
    comment = NEXT_NUMBER.sub("", COMMENTS.get(ELEMENTS[name], "")).strip()
    assert re.match(r"[A-Z0-9`]", comment), f"{name}: {comment or 'no comment'}"
    assert comment.endswith("."), f"{name}: {comment}"


@pytest.mark.parametrize("message", CONTRACT.message_type, ids=lambda message: message.name)
def test_numbers_are_used_or_reserved_without_a_gap(message):
    used = {field.number for field in message.field}
    reserved = {number for one in message.reserved_range for number in range(one.start, one.end)}
    assert not used & reserved
    after = max(used | reserved, default=0) + 1
    assert used | reserved == set(range(1, after)), "a number that nothing has is reserved, with the reason"
    said = NEXT_NUMBER.search(COMMENTS[ELEMENTS[message.name]])
    assert said, f"{message.name} doesn't say its next available field number"
    assert int(said[1]) == after


@pytest.mark.parametrize("enum", CONTRACT.enum_type, ids=lambda enum: enum.name)
def test_an_enums_numbers_have_no_gap(enum):
    reserved = {number for one in enum.reserved_range for number in range(one.start, one.end + 1)}
    numbers = {value.number for value in enum.value} | reserved
    assert numbers == set(range(len(numbers)))


def test_every_reserved_number_has_its_reason():
    for reserved in re.finditer(r"^(.*\n) *reserved ", TEXT, re.MULTILINE):
        assert reserved[1].strip().startswith("//"), "a reserved number's reason is in the comment before it"


def test_optional_fields_say_when_they_are_absent():
    for message in CONTRACT.message_type:
        for field in message.field:
            if field.proto3_optional:
                name = f"{message.name}.{field.name}"
                assert "Absent" in COMMENTS[ELEMENTS[name]], name
