"""What requests may hold: JSON objects, read into frozen dataclasses by their fields' types."""

from __future__ import annotations

import dataclasses
import json
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import NPTError

Form = TypeVar("Form")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body. Raises NPTError if there is none."""
    try:
        data = json.loads(body, parse_constant=_no_number)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as e:
        raise NPTError(f"the request's body is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise NPTError("the request's body is not a JSON object")
    return data


def read(form: type[Form], data: dict[str, Any]) -> Form:
    """`data` as a `form`; null stands for a field's default. Raises NPTError, naming the field, if one is unknown,
    missing or of the wrong kind."""
    kinds = get_type_hints(form)
    if unknown := sorted(set(data) - set(kinds)):
        raise NPTError(f"there is no field {unknown[0]!r}; there are {', '.join(kinds)}")
    given = {}
    for field in dataclasses.fields(form):  # type: ignore[arg-type]
        value = data.get(field.name)
        if value is not None:
            given[field.name] = _checked(field.name, kinds[field.name], value)
        elif field.default is dataclasses.MISSING:
            raise NPTError(f"{field.name} is missing")
    return form(**given)


def _checked(name: str, kind: Any, value: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _checked(name, next(k for k in args if k is not types.NoneType), value)
    if origin is Literal:
        if value not in args:
            raise NPTError(f"{name} must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise NPTError(f"{name} must be a list")
        return tuple(_checked(name, args[0], v) for v in value)
    kind = origin or kind  # dict for dict[str, Any]
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():  # JSON knows one kind of number
        value = int(value)
    if type(value) is not kind:
        called = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
        raise NPTError(f"{name} must be {called[kind]}, not {shown(value)}")
    return value


def shown(value: Any) -> str:
    """The beginning of a value as JSON, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
