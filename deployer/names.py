"""Every child's name, host and path, from a service's.  Nothing else makes one up."""


def key(namespace: str, name: str) -> str:
    """What the work queue calls a service: "default/iris"."""
    return f"{namespace}/{name}"


def revision(service: str, number: int) -> str:
    """KServe's name of a predictor's revision: "iris-predictor-00001"."""
    return f"{service}-predictor-{number:05d}"


def host(namespace: str, name: str, domain: str = "localhost") -> str:
    return f"{name}-{namespace}.{domain}"


def path(namespace: str, name: str) -> str:
    """The prefix under which one address serves all services, without a trailing slash."""
    return f"/serving/{namespace}/{name}"
