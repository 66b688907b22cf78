"""The fields of a Kubernetes pod and container, as far as a manifest may give them: names, shapes, quantities.

What a field holds deeper down is the cluster's to judge; what nearly everybody gets wrong at some time is judged here:
misspelt fields, numbers where text is wanted, environment variables, resources.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from deployer.errors import Mistake, did_you_mean, show, under

Fields = Mapping[str, type]

CONTAINER_FIELDS: Fields = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "name",
                "image",
                "workingDir",
                "imagePullPolicy",
                "restartPolicy",
                "terminationMessagePath",
                "terminationMessagePolicy",
            ),
            str,
        ),
        **dict.fromkeys(("command", "args", "env", "envFrom", "ports", "volumeMounts", "volumeDevices"), list),
        **dict.fromkeys(("resizePolicy", "restartPolicyRules"), list),
        **dict.fromkeys(("resources", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "securityContext"), dict),
        **dict.fromkeys(("stdin", "stdinOnce", "tty"), bool),
    }
)
# All of a pod's fields but `containers`, which has a place of its own in a component.
POD_FIELDS: Fields = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "dnsPolicy",
                "hostname",
                "hostnameOverride",
                "nodeName",
                "preemptionPolicy",
                "priorityClassName",
                "restartPolicy",
                "runtimeClassName",
                "schedulerName",
                "serviceAccount",
                "serviceAccountName",
                "subdomain",
            ),
            str,
        ),
        **dict.fromkeys(
            (
                "hostAliases",
                "imagePullSecrets",
                "initContainers",
                "readinessGates",
                "resourceClaims",
                "schedulingGates",
                "tolerations",
                "topologySpreadConstraints",
                "volumes",
            ),
            list,
        ),
        **dict.fromkeys(
            ("affinity", "dnsConfig", "nodeSelector", "os", "overhead", "resources", "schedulingGroup", "securityContext"), dict
        ),
        **dict.fromkeys(
            (
                "automountServiceAccountToken",
                "enableServiceLinks",
                "hostIPC",
                "hostNetwork",
                "hostPID",
                "hostUsers",
                "setHostnameAsFQDN",
                "shareProcessNamespace",
            ),
            bool,
        ),
        **dict.fromkeys(("activeDeadlineSeconds", "priority", "terminationGracePeriodSeconds"), int),
    }
)
_NAMES = {str: "text", list: "a list", dict: "an object", bool: "true or false", int: "a whole number"}
_HINTS = {
    str: "; put it in quotes",
    list: "; start each line of it with a dash",
    dict: "; write it as NAME: VALUE lines, indented",
    bool: ", without quotes",
    int: ", without quotes",
}


def wrong_type(value: object, wanted: type) -> str:
    """What a message says of a value of another type than the wanted one."""
    return f"found {show(value)}, wanted {_NAMES[wanted]}{_HINTS[wanted]}"


def is_a(value: object, wanted: type) -> bool:
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def check_pod(path: str, pod: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong with a pod's fields (of POD_FIELDS); their names are known to be right."""
    for name, value in pod.items():
        if not is_a(value, POD_FIELDS[name]):
            yield Mistake(f"{path}.{name}", wrong_type(value, POD_FIELDS[name]))
        elif name == "initContainers":
            yield from check_containers(f"{path}.{name}", value)
        elif name in ("volumes", "imagePullSecrets", "resourceClaims"):
            yield from _named(f"{path}.{name}", value)
        elif name == "nodeSelector":
            yield from _texts(f"{path}.{name}", value)


def check_containers(path: str, containers: Iterable[object], *, one_may_be_unnamed: bool = False) -> Iterator[Mistake]:
    """`one_may_be_unnamed`: the first is the server, and gets its name from us."""
    seen: set[str] = set()
    for at, container in enumerate(containers):
        here = f"{path}[{at}]"
        if not isinstance(container, dict):
            yield Mistake(here, wrong_type(container, dict))
            continue
        name = container.get("name")
        if isinstance(name, str) and name in seen:
            yield Mistake(f"{here}.name", f"a container before this one is also called {name!r}; names have to differ")
        elif not name and not (at == 0 and one_may_be_unnamed):
            yield Mistake(f"{here}.name", "missing: each container needs a name")
        if isinstance(name, str):
            seen.add(name)
        yield from check_container(here, container)


def check_container(path: str, container: Mapping[str, Any]) -> Iterator[Mistake]:
    for name, value in container.items():
        here = f"{path}.{name}"
        if name not in CONTAINER_FIELDS:
            yield Mistake(here, f"a container has no such field{did_you_mean(name, CONTAINER_FIELDS)}")
        elif not is_a(value, CONTAINER_FIELDS[name]):
            yield Mistake(here, wrong_type(value, CONTAINER_FIELDS[name]))
        elif name in ("args", "command"):
            yield from (
                Mistake(f"{here}[{at}]", wrong_type(one, str)) for at, one in enumerate(value) if not isinstance(one, str)
            )
        elif name == "env":
            yield from _environment(here, value)
        elif name == "ports":
            yield from _ports(here, value)
        elif name == "resources":
            yield from check_resources(here, value)


def _environment(path: str, variables: list[Any]) -> Iterator[Mistake]:
    for at, variable in enumerate(variables):
        here = f"{path}[{at}]"
        if not isinstance(variable, dict):
            yield Mistake(here, f"found {show(variable)}, wanted an object with name and value")
            continue
        name, value = variable.get("name"), variable.get("value", "")
        if not isinstance(name, str) or not name:
            yield Mistake(f"{here}.name", f"found {show(name)}, wanted the variable's name")
        elif name == "PYTHONPATH":
            yield Mistake(
                f"{here}.name",
                "PYTHONPATH may not be set: it would replace the server's modules; put code into the image or beside the model",
            )
        if not isinstance(value, str):
            yield Mistake(f"{here}.value", wrong_type(value, str))
        if value and "valueFrom" in variable:
            yield Mistake(here, "value and valueFrom exclude each other; leave one out")
        for unknown in variable.keys() - {"name", "value", "valueFrom"}:
            hint = did_you_mean(unknown, ("name", "value", "valueFrom"))
            yield Mistake(f"{here}.{unknown}", f"an environment variable has no such field{hint}")


def _ports(path: str, ports: list[Any]) -> Iterator[Mistake]:
    for at, port in enumerate(ports):
        number = port.get("containerPort") if isinstance(port, dict) else port
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 65536:
            yield Mistake(f"{path}[{at}].containerPort", f"found {show(number)}, wanted a port from 1 to 65535")


def check_resources(path: str, resources: Mapping[str, Any]) -> Iterator[Mistake]:
    """Quantities that are none, and requests above their limits."""
    amounts: dict[tuple[str, str], Decimal] = {}
    for kind, given in resources.items():
        if kind == "claims":
            continue
        if kind not in ("requests", "limits"):
            hint = did_you_mean(kind, ("requests", "limits", "claims")) or "; wanted requests, limits or claims"
            yield Mistake(f"{path}.{kind}", f"no such field{hint}")
        elif not isinstance(given, dict):
            yield Mistake(f"{path}.{kind}", wrong_type(given, dict))
        else:
            for name, amount in given.items():
                try:
                    amounts[kind, name] = quantity(amount)
                except ValueError as error:
                    yield Mistake(under(f"{path}.{kind}", name), str(error))
    for (kind, name), amount in amounts.items():
        if kind == "requests" and amount > amounts.get(("limits", name), amount):
            yield Mistake(
                under(f"{path}.requests", name),
                f"{resources['requests'][name]} is more than the limit, {resources['limits'][name]}; "
                "lower the request or raise the limit",
            )


_UNITS = {
    "": Decimal(1),
    **{unit: Decimal(1) / Decimal(1000) ** power for power, unit in enumerate("mun", 1)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


def quantity(amount: object) -> Decimal:
    """A Kubernetes quantity (`500m`, `2Gi`, `1e3`, 4) as a number; ValueError, with a text for a person, where it is none."""
    if is_a(amount, int) or isinstance(amount, float):
        amount = str(amount)
    found = re.fullmatch(r"(?a)(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?", str(amount))
    if not isinstance(amount, str) or found is None:
        raise ValueError(
            f"found {show(amount)}, wanted a quantity such as 500m or 2 (CPU), 512Mi or 2Gi (memory){_unit_hint(amount)}"
        )
    number, unit, exponent = found.groups()
    return Decimal(number) * _UNITS[unit or ""] * Decimal(10) ** int(exponent or 0)


def _unit_hint(amount: object) -> str:
    spelt = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKmMgGtT])(?:i?[bB]?)?", amount) if isinstance(amount, str) else None
    return f"; did you mean {spelt[1]}{spelt[2].upper()}i?" if spelt else ""


def _named(path: str, items: list[Any]) -> Iterator[Mistake]:
    for at, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not item["name"]:
            yield Mistake(f"{path}[{at}].name", "missing: each of these needs a name")


def _texts(path: str, values: Mapping[str, Any]) -> Iterator[Mistake]:
    yield from (Mistake(under(path, key), wrong_type(value, str)) for key, value in values.items() if not isinstance(value, str))
