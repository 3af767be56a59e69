"""YAML, overrides and validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError, UserErrors
from pipeline.settings import Section, dump_yaml, merge, override_tree, parse_yaml, read_yaml, validate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # PyYAML alone reads text
        ("2E5", 2e5),
        ("-.5", -0.5),
        ("12", 12),
        ("1.", 1.0),
        ("4:00:00", "4:00:00"),  # PyYAML alone reads 14400
        ("2026-01-01", "2026-01-01"),
        ('"1e-5"', "1e-5"),
        ("yes", True),
        ("null", None),
        ("e5", "e5"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = parse_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "part"), [("a: 1\na: 2", "'a' stands twice"), ("a: [1", "line 1"), ("a: b: c", "line")]
)
def test_bad_yaml_names_the_line(text: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        parse_yaml(text, "file.yaml")


def test_read_yaml_refuses_what_is_no_mapping(tmp_path: Path) -> None:
    for name, content, part in [
        ("list.yaml", b"- 1", "a mapping was expected"),
        ("latin.yaml", b"a: \xe9", "not UTF-8"),
        ("empty.yaml", b"", "a mapping was expected"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=part):
            read_yaml(path)
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")


def test_overrides_merge_key_by_key() -> None:
    tree = {"sft": {"learning_rate": 1.0, "epochs": 3}, "seed": 1}
    assert merge(tree, override_tree("sft.learning_rate=1e-4")) == {
        "sft": {"learning_rate": 1e-4, "epochs": 3},
        "seed": 1,
    }
    assert override_tree("model.lora=null") == {"model": {"lora": None}}
    assert override_tree("a.b=x=y") == {"a": {"b": "x=y"}}
    for bad in ("sft.learning_rate", "=3", "a..b=1"):
        with pytest.raises(UserError, match="not an override"):
            override_tree(bad)


class Inner(Section):
    count: int = 1
    rate: float = 0.1


class Outer(Section):
    inner: Inner = Inner()
    name: str


def test_every_error_at_once_with_the_nearest_key() -> None:
    with pytest.raises(UserErrors) as caught:
        validate(Outer, {"inner": {"cuont": 1, "rate": "1e-5"}, "nmae": "x"}, "f.yaml")
    text = str(caught.value)
    assert "'inner.cuont' in f.yaml -> did you mean 'count'?" in text
    assert "inner.rate" in text and "write the number without quotes" in text
    assert "missing key: 'name'" in text
    assert "did you mean 'name'?" in text
    assert len(text.splitlines()) == 4


def test_dump_reads_back() -> None:
    tree = {"a": 1e-5, "b": "4:00:00", "c": [1, None, True], "d": {"e": "1e-5"}, "f": 'it\'s "x" é'}
    assert parse_yaml(dump_yaml(tree), "x") == tree
