"""YAML to frozen, validated settings: every error at once, with the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError, UserErrors

Tree = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every settings class: unknown keys refused, no silent conversion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


SectionT = TypeVar("SectionT", bound=Section)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2, so that 1e-5 is a number and 4:00:00 is text; no repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own mechanism
        first: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> Tree:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `_Loader` would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - filled below


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """Texts with the line ends of other alphabets are escaped: PyYAML would fold them into blanks."""
    style = '"' if re.search("[\x85\u2028\u2029]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _text)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)
for _tag, _pattern in {
    "int": r"^[-+]?[0-9]+$",
    "float": r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|nan)$",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list("-+.0123456789"))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document. Raises UserError with the line on a syntax error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error)
        raise UserError("not valid YAML", value=problem, where=line, do="mend this line") from None


def read_text(path: Path) -> str:
    """The text of a settings file. Raises UserError when it is absent, not readable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", value=str(path), do="check the path") from None
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", value=f"byte {error.start}", where=str(path), do="save it as UTF-8") from None
    except OSError as error:
        raise UserError("cannot read", value=error.strerror, where=str(path), do="check its permissions") from None


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file. Raises UserError when there is none."""
    tree = parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise UserError("a mapping was expected", value=tree, where=str(path), do="write `key: value` lines")
    return tree


def dump_yaml(tree: Tree) -> str:
    """YAML text of plain values, keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def merge(base: Tree, change: Tree) -> Tree:
    """`base` with the values of `change` laid over it, mappings merged key by key."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override_tree(override: str) -> Tree:
    """`sft.learning_rate=1e-4` as a nested mapping. Raises UserError when it has no `=` or no key."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError("not an override", value=override, where="the command line", do="write section.key=value")
    value = parse_yaml(text, f"the override {override}")
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def listed_texts(text: str, where: str) -> list[str]:
    """The items of `a,b,[c, d]` as they are written; commas within brackets and quotes do not divide.

    Raises UserError when it is not a list of YAML values, or none.
    """
    try:
        node = yaml.compose(f"[{text}]", Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise UserError("not a list of values", value=problem, where=where, do="write VALUE,VALUE,...") from None
    if not isinstance(node, yaml.SequenceNode) or not node.value or node.end_mark.index != len(text) + 2:
        raise UserError("not a list of values", value=text, where=where, do="write VALUE,VALUE,...")
    return [text[item.start_mark.index - 1 : item.end_mark.index - 1] for item in node.value]


def nearest(word: str, valid: Collection[str]) -> str:
    """A hint that names the nearest valid word, else all of them (at most 12)."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "valid: " + ", ".join(sorted(valid)[:12]) + (", ..." if len(valid) > 12 else "")


def collect(checks: Sequence[Callable[[], object]]) -> None:
    """Run every check, then raise all their user errors together (one alone is raised as it is)."""
    errors: list[UserError] = []
    for check in checks:
        try:
            check()
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
    raise_all(errors)


def raise_all(errors: Sequence[UserError]) -> None:
    """Raise the errors together; nothing when there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)


def _field_names(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Valid keys of the section that holds the last part of `location`."""
    current: Any = model
    for part in location[:-1]:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return sorted(current.model_fields) if current is not None and hasattr(current, "model_fields") else []


def validate(model: type[SectionT], tree: Tree, where: str, prefix: str = "") -> SectionT:
    """`tree` as an instance of `model`. Raises UserErrors with one line for each thing that is wrong."""
    try:
        return model.model_validate(tree)
    except ValidationError as found:
        raise_all([_told(model, dict(error), where, prefix) for error in found.errors()])
        raise  # not reached: pydantic always lists at least one error


def _told(model: type[BaseModel], error: dict[str, Any], where: str, prefix: str) -> UserError:
    dotted = prefix + ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        hint = nearest(str(error["loc"][-1]), _field_names(model, error["loc"]))
        return UserError("unknown key", value=dotted, where=where, do=hint)
    if error["type"] == "missing":
        return UserError("missing key", value=dotted, where=where, do="add it")
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict) and error["type"] == "value_error":
        return UserError(message, where=f"{dotted or 'the recipe'} ({where})", do="change one of the values named")
    hint = _number_hint(error["input"], error["type"])
    return UserError(f"{dotted or where}: {message}", value=error["input"], where=where, do=hint)


def _number_hint(value: object, kind: str) -> str:
    if isinstance(value, str) and ("float" in kind or "int" in kind):
        return "write the number without quotes"
    return "give a value of this kind"
