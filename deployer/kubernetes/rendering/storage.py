"""How a model comes into a predictor's pod: an init container that fetches it, or a volume that has it already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deployer.kubernetes.rendering import credentials
from deployer.kubernetes.rendering.credentials import NOTHING, Given, ServiceAccountSeen
from deployer.kubernetes.rendering.settings import Settings
from deployer.spec.formats import format_of, scheme_of

Object = dict[str, Any]
MODELS = "/mnt/models"
INITIALIZER = "storage-initializer"
FETCHED, CLAIMED, IMAGE, SEVERAL = "kserve-provision-location", "kserve-pvc-source", "model-image", "mnt-models"


@dataclass(frozen=True)
class Storage:
    """What a pod needs for its models; `mounts` are the server's."""

    init: Object | None = None
    volumes: tuple[Object, ...] = ()
    mounts: tuple[Object, ...] = ()


def storage(
    settings: Settings,
    sources: Sequence[tuple[str, str]],
    account: ServiceAccountSeen,
    server_mounts: Sequence[Mapping[str, Any]] = (),
    *,
    read_only: bool = True,
    extra: Given = NOTHING,
) -> Storage:
    """`sources` are URIs and the folders that they go to.  `server_mounts` are the user's own, for models that lie on one."""
    volumes: dict[str, Object] = {}
    mounts: list[Object] = []
    fetched: list[tuple[str, str]] = []
    for uri, folder in sources:
        scheme = scheme_of(uri)
        if scheme == "pvc":
            claim, _, path = uri.partition("://")[2].partition("/")
            name = CLAIMED if len(sources) == 1 else f"{CLAIMED}-{claim}"
            volumes[name] = {"name": name, "persistentVolumeClaim": {"claimName": claim}}
            mounts.append(_mount(name, folder, path.strip("/"), read_only))
        elif scheme in ("oci", "oci+native", "oci+fetch"):
            name = IMAGE if len(sources) == 1 else f"{IMAGE}-{len(volumes)}"
            volumes[name] = {"name": name, "image": {"reference": uri.partition("://")[2], "pullPolicy": "IfNotPresent"}}
            # where KServe's model images have it
            mounts.append({"name": name, "mountPath": folder, "subPath": "models", "readOnly": True})
        elif uri.rstrip("/") != folder:
            fetched.append((uri, folder))
    if not fetched:
        return Storage(None, tuple(volumes.values()), tuple(mounts))
    name = FETCHED if len(sources) == 1 else SEVERAL
    place = fetched[0][1] if len(sources) == 1 else _common([folder for _, folder in fetched])
    volumes[name] = {"name": name, "emptyDir": {}}
    mounts.insert(0, {"name": name, "mountPath": place, "readOnly": read_only})
    secrets = credentials.given(settings.credentials, account)
    init = _initializer(settings, fetched, {"name": name, "mountPath": place}, secrets, extra, server_mounts)
    bundle = _bundle(settings, secrets)
    certificates = [{"name": "cabundle-cert", "configMap": {"name": bundle}}] if bundle else []
    all_volumes = (*volumes.values(), *secrets.volumes, *extra.volumes, *certificates)
    return Storage(init, all_volumes, tuple(mounts))


def _mount(name: str, folder: str, path: str, read_only: bool) -> Object:
    # one file keeps its name, by which the server knows what it is
    place = f"{folder}/{PurePosixPath(path).name}" if format_of(path) else folder
    return {"name": name, "mountPath": place, **({"subPath": path} if path else {}), "readOnly": read_only}


def _common(folders: Sequence[str]) -> str:
    parents = [PurePosixPath(folder).parts for folder in folders]
    shared = [parts[0] for parts in zip(*parents, strict=False) if len(set(parts)) == 1]
    return str(PurePosixPath(*shared))


def _bundle(settings: Settings, secrets: Given) -> str:
    """The ConfigMap with the certificates to trust: the account's own, else that of all."""
    named = (str(one.get("value", "")) for one in secrets.env if one["name"] == credentials.CA_BUNDLE_CONFIGMAP)
    return next(named, "") or settings.storage.ca_bundle


def _initializer(
    settings: Settings,
    fetched: Sequence[tuple[str, str]],
    mount: Object,
    secrets: Given,
    extra: Given,
    server_mounts: Sequence[Mapping[str, Any]],
) -> Object:
    own = settings.storage
    env = {one["name"]: one for one in (*secrets.env, *extra.env)}
    mounts = [mount, *secrets.mounts, *extra.mounts, {"name": TMP, "mountPath": "/tmp"}]
    if bundle := _bundle(settings, secrets):
        env["CA_BUNDLE_CONFIGMAP_NAME"] = {"name": "CA_BUNDLE_CONFIGMAP_NAME", "value": bundle}
        env["CA_BUNDLE_VOLUME_MOUNT_POINT"] = {"name": "CA_BUNDLE_VOLUME_MOUNT_POINT", "value": own.ca_bundle_path}
        mounts.append({"name": "cabundle-cert", "mountPath": own.ca_bundle_path, "readOnly": True})
    if any(scheme_of(uri) in ("", "file") for uri, _ in fetched):
        taken = {one["mountPath"] for one in mounts}
        mounts += [dict(one) for one in server_mounts if one.get("mountPath") not in taken]
    return {
        "name": INITIALIZER,
        "image": with_registry(settings, own.image),
        "args": [word for pair in fetched for word in pair],
        **({"env": list(env.values())} if env else {}),
        "resources": {
            "requests": {"cpu": own.cpu_request, "memory": own.memory_request},
            "limits": {"cpu": own.cpu_limit, "memory": own.memory_limit},
        },
        "volumeMounts": mounts,
        "securityContext": {**RESTRICTED, "readOnlyRootFilesystem": True},
        # the reason of a failure becomes the service's status
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


TMP = "serveplane-tmp"
RESTRICTED: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# What images of ours are called, whatever registry they are in.
OURS = "serveplane/"


def with_registry(settings: Settings, image: str) -> str:
    return f"{settings.registry}/{image}" if settings.registry and image.startswith(OURS) else image


def is_ours(settings: Settings, image: str) -> bool:
    return image.removeprefix(f"{settings.registry}/").startswith(OURS)
