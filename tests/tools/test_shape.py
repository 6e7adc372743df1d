"""`make shape` measures what it says, on sources small enough to count by hand; and the project keeps its figures."""

from pathlib import Path
from textwrap import dedent

import pytest

from tools.shape import measures
from tools.shape.__main__ import main, render_over
from tools.shape.figures import read_project
from tools.shape.limits import LIMITS, PACKAGES
from tools.shape.sources import When, imports_among, read_sources

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(tmp_path):
    """Writes a package `p` from its files' texts, and reads it."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "p" / (name.replace("__in__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        return read_sources(tmp_path, ["p"])

    return write


def figure(project, name):
    (found,) = [each for each in project.figures if each.limit.figure == name]
    return found


def imported(sources):
    return [(each.importer, each.imported, each.when) for each in imports_among(sources)]


def test_a_class_counts_its_own_methods_and_the_lines_from_class_to_its_end(written):
    sources = written(
        a="""
        @decorator
        class Outer(Base):
            value = 1

            def one(self): ...

            @property
            def two(self): return 2

            class Inner:
                async def three(self):
                    def nested(): ...
        """
    )
    outer, inner = measures.classes(sources)
    assert (outer.name, outer.line, outer.lines, outer.size) == ("Outer", 3, 11, 2)
    assert (inner.name, inner.lines, inner.size) == ("Outer.Inner", 3, 1)


def test_parameters_count_without_self_and_with_every_kind_of_them(written):
    sources = written(
        a="""
        class A:
            def __init__(self, a, /, b, *rest, c, d=1, **options): ...
            @staticmethod
            def static(a, b): ...
            @classmethod
            def of(cls, a): ...
        def free(a, b, c): ...
        """
    )
    assert {each.name: each.size for each in measures.functions(sources)} == {
        "A.__init__": 6,
        "A.static": 2,
        "A.of": 1,
        "free": 3,
    }


def test_only_a_constructor_that_is_written_out_is_one_and_a_changeable_dataclass_is_told_apart(written):
    sources = written(
        a="""
        @dataclass(frozen=True)
        class Value:
            a: int
        @dataclass
        class Changeable:
            a: int
            b: int
        @dataclass(slots=True)
        class Also:
            c: int
        class Service:
            def __init__(self, a): ...
        """
    )
    assert [each.name for each in measures.constructors(measures.functions(sources))] == ["Service.__init__"]
    assert [(each.name, each.size) for each in measures.changeable_dataclasses(sources)] == [
        ("Changeable", 2),
        ("Also", 1),
    ]


def test_a_function_has_the_lines_from_def_to_its_end_and_one_inside_another_is_its_own(written):
    sources = written(a="@mark\ndef outer(\n    a,\n):\n    def inner():\n        return 1\n    return inner\n")
    assert [(each.name, each.lines) for each in measures.functions(sources)] == [("outer", 6), ("outer.inner", 2)]


def test_any_counts_in_annotations_aliases_and_quotes_but_not_where_it_is_imported_or_in_text(written):
    sources = written(
        a="""
        from typing import Any, cast
        import typing
        Rows = dict[str, Any]
        class A:
            field: list["Any"]
            def get(self, a: Any, b: "dict[Any, Any]", c: typing.Any) -> "Any | None":
                '''Any of these.'''
                return cast("Any", "Any")
        """,
        b="Any = 'Anybody'.join",
        c="value: int",
    )
    assert [(each.where, each.value) for each in measures.any_uses(sources)] == [("p/a.py", 8), ("p/b.py", 1)]


def test_what_is_imported_is_the_module_and_else_the_package(written):
    sources = written(
        __init__="name = 1",
        a="from p import b, name\nimport p.c\nimport os\nfrom p.d import e, thing",
        b="",
        c="from .d import e\nfrom . import b\nfrom .b import anything",
        d__in____init__="from . import e\nfrom .. import name\nfrom ..c import something",
        d__in__e="",
    )
    assert {pair[:2] for pair in imported(sources)} == {
        ("p/a.py", "p/b.py"),
        ("p/a.py", "p/__init__.py"),
        ("p/a.py", "p/c.py"),
        ("p/a.py", "p/d/e.py"),
        ("p/a.py", "p/d/__init__.py"),
        ("p/c.py", "p/d/e.py"),
        ("p/c.py", "p/b.py"),
        ("p/d/__init__.py", "p/d/e.py"),
        ("p/d/__init__.py", "p/__init__.py"),
        ("p/d/__init__.py", "p/c.py"),
    }
    assert measures.fan_outs(imports_among(sources))[0] == measures.Finding(5, "p/a.py")


def test_an_import_knows_whether_it_happens_at_once_in_a_call_or_for_types_alone(written):
    sources = written(
        a="""
        import p.b
        if TYPE_CHECKING:
            import p.c
        else:
            import p.d
        class A:
            import p.e
            def get(self):
                try:
                    import p.f
                finally:
                    pass
        """,
        **dict.fromkeys("bcdef", ""),
    )
    assert [(path, when) for _, path, when in imported(sources)] == [
        ("p/b.py", When.LOADED),
        ("p/c.py", When.NEVER),
        ("p/d.py", When.LOADED),
        ("p/e.py", When.LOADED),
        ("p/f.py", When.CALLED),
    ]


def test_a_circle_that_an_import_in_a_function_hides_is_found_with_all_its_files(written):
    sources = written(
        a="from p import b",
        b="def later():\n    from p.c import thing",
        c="import p.a",
        above="from p import a",
        below="",
    )
    assert measures.circles(imports_among(sources)) == [measures.Finding(3, "p/a.py <-> p/b.py <-> p/c.py")]


def test_a_circle_over_a_lazy_package_is_found_and_one_over_types_alone_is_told_apart(written):
    lazy = written(__init__="def __getattr__(name):\n    from p import a", a="from p import Name")
    assert [each.where for each in measures.circles(imports_among(lazy))] == ["p/__init__.py <-> p/a.py"]
    typed = imports_among(written(__init__="", a="if TYPE_CHECKING:\n    import p.b", b="import p.a"))
    assert measures.circles(typed) == []
    assert [each.where for each in measures.circles(typed, with_types=True)] == ["p/a.py <-> p/b.py"]


def test_an_import_of_a_higher_layer_is_found_and_the_longest_entry_decides_the_layer(written):
    sources = written(
        low="from p import high, room\nfrom p.room import top",
        high="import p.low",
        room__in____init__="",
        room__in__top="from p import high\nimport p.low",
        lost="",
    )
    layers = measures.parse_layers("p low.py room/\n\np high.py\np room/top.py gone.py")
    assert [(each.where, each.value) for each in measures.upwards(imports_among(sources), layers)] == [
        ("p/low.py:2 -> p/room/top.py", 2),
        ("p/low.py:1 -> p/high.py", 1),
    ]
    assert [each.where for each in measures.without_layer(sources, layers)] == ["p/lost.py"]
    assert measures.unused_entries(sources, layers) == ["p/gone.py"]
    assert measures.without_layer(sources, measures.parse_layers("p *")) == []


def test_two_packages_that_stay_apart_are_held_to_it_in_both_directions(tmp_path):
    for package, text in [("one", "import other.b"), ("other", "def f():\n    import one.a")]:
        (tmp_path / package).mkdir()
        (tmp_path / package / ("a.py" if package == "one" else "b.py")).write_text(text)
    imports = imports_among(read_sources(tmp_path, ["one", "other"]))
    assert [each.where for each in measures.between(imports, "one/", "other/")] == [
        "one/a.py:1 -> other/b.py",
        "other/b.py:2 -> one/a.py",
    ]


def test_comments_that_silence_a_checker_count_by_line(written):
    sources = written(a="a = 1  # type: ignore[x]  # noqa: E501\nb = 2  # nosec\nc = 'type: ignore'\n")
    assert (measures.comments(sources, "type: ignore"), measures.comments(sources, "noqa", "nosec")) == (1, 2)


def test_a_limit_is_broken_by_one_more_and_names_what_breaks_it(tmp_path):
    methods = "\n".join(f"    def m{number}(self): ..." for number in range(26))
    parameters = ", ".join("abcdefghi")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text(f"class Big:\n{methods}\n")
    (tmp_path / "p" / "b.py").write_text(f"class Long:\n    def __init__(self, {parameters}): ...\n" + "\n" * 449)
    (tmp_path / "p" / "c.py").write_text("def f():\n" + "    a = 1\n" * 60)
    project = read_project(tmp_path, packages=["p"], layers="p *")
    assert {
        each.limit.figure: (each.value, [one.where for one in each.over]) for each in project.figures if each.is_over
    } == {
        "methods of a class": (26, ["p/a.py:1 Big"]),
        "parameters of a constructor": (9, ["p/b.py:2 Long.__init__"]),
        "lines of a file": (451, ["p/b.py"]),
        "lines of a function": (61, ["p/c.py:1 f"]),
    }
    assert figure(project, "lines of the median file").value == 61


def test_a_limit_leaves_out_what_it_is_not_meant_for(tmp_path):
    migrations = tmp_path / "fedmtl_server" / "storage" / "migrations"
    migrations.mkdir(parents=True)
    (migrations / "first.py").write_text("def upgrade():\n" + "    a = 1\n" * 99)
    (tmp_path / "fedmtl_server" / "assembly.py").write_text(
        "".join(f"import fedmtl_server.m{number}\n" for number in range(21))
    )
    for number in range(21):
        (tmp_path / "fedmtl_server" / f"m{number}.py").write_text("")
    project = read_project(tmp_path, packages=["fedmtl_server"], layers="fedmtl_server *")
    assert not any(each.is_over for each in project.figures)


def test_any_adds_up_over_the_packages_and_in_the_layer_that_has_its_own_limit(tmp_path):
    access = tmp_path / "fedmtl_server" / "access"
    access.mkdir(parents=True)
    (access / "a.py").write_text("a: Any\n" * 11)
    (tmp_path / "fedmtl_server" / "b.py").write_text("a: Any; " * 139 + "a = 1")
    project = read_project(tmp_path, packages=["fedmtl_server"], layers="fedmtl_server *")
    assert figure(project, "Any, in all packages").value == 150
    assert [each.limit.figure for each in project.figures if each.is_over] == ["Any, in fedmtl_server/access"]


def test_the_command_prints_every_figure_and_fails_on_one_over_its_limit(tmp_path, capsys):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "fedmtl_core" / "errors.py").write_text("a = 1\n")
    assert main(["--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(limit.figure) for line in lines) for limit in LIMITS)
    assert not any("OVER" in line for line in lines)

    (tmp_path / "fedmtl_core" / "new.py").write_text("a = 1\n")
    assert main(["--root", str(tmp_path)]) == 1
    assert "modules in no layer                      1      0  OVER  fedmtl_core/new.py" in capsys.readouterr().out
    assert main(["--root", str(tmp_path), "--over"]) == 1
    assert "add the module to LAYERS" in capsys.readouterr().out
    assert main(["--root", str(tmp_path), "--no-layers"]) == 0


def test_a_project_without_one_of_the_packages_is_no_project(tmp_path):
    with pytest.raises(FileNotFoundError, match="fedmtl_core"):
        read_sources(tmp_path, PACKAGES)


@pytest.fixture(scope="module")
def this_project():
    return read_project(ROOT)


@pytest.mark.parametrize("name", [limit.figure for limit in LIMITS])
def test_the_project_keeps_its_figures(this_project, name):
    found = figure(this_project, name)
    assert not found.is_over, "\n".join(render_over([found]))
