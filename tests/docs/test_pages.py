"""What follows a page does notice when the page is wrong."""

import pytest

from tests.docs.pages import Type, WriteFile, require_shown, steps, with_section_extended

PAGE = """
```yaml title="a.yaml"
tasks:
  b: 1
```

```python
not_for_a_file = 1
```

```console
$ first
shown
$ second
```

```console title="Terminal 1"
$ server
… started …
```

```console title="Terminal 1"
… ended …
```

```yaml title="a.yaml, at the end of tasks"
  c: 2
```
"""


def test_a_page_is_files_to_write_and_commands_to_type():
    assert list(steps(PAGE)) == [
        WriteFile("a.yaml", "", "tasks:\n  b: 1\n"),
        Type("", "first", ["shown"]),
        Type("", "second", []),
        Type("Terminal 1", "server", ["… started …"]),
        Type("Terminal 1", "", ["… ended …"]),
        WriteFile("a.yaml", "tasks", "  c: 2\n"),
    ]


def test_lines_go_to_the_end_of_their_section():
    text = "tasks:\n  a: 1\n\n# of all\nclients:\n  - b\n"
    assert with_section_extended(text, "clients", "  - c\n") == text + "  - c\n"
    assert (
        with_section_extended("tasks:\n  a: 1\nclients:\n", "tasks", "  d: 2\n") == "tasks:\n  a: 1\n  d: 2\nclients:\n"
    )


@pytest.mark.parametrize(
    "expected",
    [["one", "two 2", "three"], ["…", "three"], ["one", "…"], ["one", "two …", "three"], ["…", "two 2", "…"], []],
)
def test_what_is_shown_may_leave_out_what_is_marked(expected):
    require_shown(expected, ["one", "two   2", "", "three"])


@pytest.mark.parametrize(
    "expected", [["one"], ["two 2", "three"], ["one", "three"], ["…", "four"], ["three", "…", "one"]]
)
def test_what_is_not_shown_as_the_page_says_is_an_error(expected):
    with pytest.raises(AssertionError):
        require_shown(expected, ["one", "two 2", "three"])
