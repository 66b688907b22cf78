"""`python -m deployer.kubernetes`: the controller as a process.

Every replica keeps its caches and answers the webhook; the one that holds the Lease writes.  A replica that loses it ends at
once, with exit code 1, and what runs the process starts it anew.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping

from deployer.controller import Controller
from deployer.errors import DeployerError
from deployer.kubernetes.admission.keeping import WebhookKeeping
from deployer.kubernetes.admission.webhook import Rotation, Webhook, service_hosts
from deployer.kubernetes.api import Api, connect
from deployer.kubernetes.kinds import CONFIG_MAP
from deployer.kubernetes.leader import Election
from deployer.kubernetes.platform import ClusterPlatform
from deployer.kubernetes.rendering.settings import CONFIG_MAP as CONFIG_NAME
from deployer.kubernetes.telemetry import Labels, Metric, Telemetry

log = logging.getLogger("deployer.kubernetes")
LEASE_READ_SECONDS = 5.0


def _options(argv: list[str]) -> argparse.Namespace:
    """Flags, each with an environment variable SERVEPLANE_… of its name."""
    parser = argparse.ArgumentParser(
        "python -m deployer.kubernetes", description="Serveplane's controller for a Kubernetes cluster."
    )

    def option(flag: str, default: str, about: str, kind: type = str) -> None:
        variable = "SERVEPLANE_" + flag.upper().replace("-", "_")
        given = os.environ.get(variable) or default
        parser.add_argument(f"--{flag}", default=given, type=kind, metavar=kind.__name__.upper(), help=f"{about} [{variable}]")

    option("kubeconfig", "", "A kubeconfig; by default the pod's own account, $KUBECONFIG or ~/.kube/config.")
    option("context", "", "A context of the kubeconfig; by default its current one.")
    option("namespaces", "", "The only namespaces that are looked at, with commas between; by default all.")
    option("config-namespace", "kserve", "Where the ConfigMap inferenceservice-config is.")
    option("lease-namespace", "", "Where the Lease is; by default where the ConfigMap is.")
    option("lease-name", "serveplane", "The Lease's name.")
    option("identity", "", "What this replica is called in the Lease; by default host, pid and a random part.")
    option("workers", "2", "How many services are worked on at once.", int)
    option("port", "8080", "For /metrics, /healthz and /readyz; 0 picks a free one.", int)
    option("webhook-service", "", "The Service of the webhook; without one there is none.")
    option("webhook-secret", "serveplane-webhook", "The Secret that its certificate is kept in, where the Lease is.")
    option("webhook-configuration", "", "What the webhook's configurations are called; by default SERVICE-NAMESPACE.")
    option("webhook-port", "9443", "The webhook's port.", int)
    option("log-level", "info", "debug, info, warning or error.")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = _options(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        api = connect(options.kubeconfig or None, options.context or None)
        own = connect(options.kubeconfig or None, options.context or None, LEASE_READ_SECONDS)
    except DeployerError as error:
        log.error("%s", error)
        return 1
    return _run(options, api, own, ended)


def _run(options: argparse.Namespace, api: Api, own: Api, ended: threading.Event) -> int:
    namespaces = [one.strip() for one in options.namespaces.split(",") if one.strip()]
    lease_namespace = options.lease_namespace or options.config_namespace
    platform = ClusterPlatform(api, namespaces, options.config_namespace)
    admits = threading.Event()
    election = Election(
        own,
        lease_namespace,
        options.lease_name,
        identity=options.identity,
        again=platform.look_again,
        # an installer that removes the ConfigMap does not know of the Lease
        owner=lambda: (
            own.find(CONFIG_MAP.path(lease_namespace, CONFIG_NAME)) if lease_namespace == options.config_namespace else None
        ),
    )
    api.may_write = lambda: election.leads
    telemetry = Telemetry(
        options.port,
        lambda: _metrics(api, platform, election),
        lambda: platform.broken,
        lambda: _why_not_ready(platform, ended, admits),
    )
    telemetry.start()
    # each request of a Lease and a watch would be two lines of it
    logging.getLogger("urllib3").setLevel(logging.INFO)
    log.info("telemetry on port %d; the cluster is %s", telemetry.port, api.host)
    if not platform.start(ended):
        return 0
    try:
        webhook = _webhook(options, own, platform, lease_namespace) if options.webhook_service else None
    except OSError as error:
        log.error("the webhook can't be served: %s", error)
        return 1
    admits.set()
    election.start()
    controller = Controller(platform, options.workers)
    while not (ended.is_set() or election.won.wait(0.2)):
        pass
    if not ended.is_set():
        controller.start()
    while not (ended.wait(0.2) or election.lost.is_set()):
        pass
    if election.lost.is_set():
        # threads may be in the middle of something, and none of them may write any more
        logging.shutdown()
        os._exit(1)
    log.info("ending")
    if election.won.is_set():
        controller.stop()
    election.stop()
    platform.stop()
    if webhook:
        webhook[0].stop()
        # last of all, so that whoever leads next need not wait for it
        webhook[1].leave()
    telemetry.stop()
    return 0


def _why_not_ready(platform: ClusterPlatform, ended: threading.Event, admits: threading.Event) -> str:
    if ended.is_set():
        return "it is ending"
    if not platform.is_synced:
        return "the caches are not filled yet"
    # an address of the webhook's Service from now on, where it has one
    return "" if admits.is_set() else "the webhook does not listen yet"


def _webhook(options: argparse.Namespace, own: Api, platform: ClusterPlatform, namespace: str) -> tuple[Rotation, Webhook]:
    webhook = Webhook(platform.runtimes, options.webhook_port, notices=platform.notices)
    configuration = options.webhook_configuration or f"{options.webhook_service}-{namespace}"
    keeping = WebhookKeeping(own, namespace, options.webhook_secret, configuration)
    rotation = Rotation(webhook, keeping, service_hosts(options.webhook_service, namespace))
    rotation.start()
    webhook.start()
    log.info("webhook on port %d", webhook.port)
    return rotation, webhook


def _metrics(api: Api, platform: ClusterPlatform, election: Election) -> Iterable[Metric]:
    requests: dict[Labels, float] = {
        (("verb", verb), ("code", str(code))): float(count) for (verb, code), count in sorted(api.requests.items())
    }
    yield ("serveplane_api_requests_total", "counter", "Requests to the API server, code 0 without an answer.", requests)
    yield ("serveplane_reconciles_total", "counter", "How often a service was worked on.", {(): platform.reconciles})
    yield ("serveplane_cached_objects", "gauge", "Objects in memory.", _by("kind", platform.cached))
    yield ("serveplane_watch_failures_total", "counter", "How often a watch had to begin anew.", _by("kind", platform.restarts))
    yield ("serveplane_services", "gauge", "InferenceServices by their condition Ready.", _by("ready", platform.services))
    yield ("serveplane_leader", "gauge", "1 where this replica may write.", {(): float(election.leads)})


def _by(label: str, counts: Mapping[str, int]) -> dict[Labels, float]:
    return {((label, value),): float(count) for value, count in counts.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
